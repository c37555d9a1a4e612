"""The bridge to a site's own broker: a real Mosquitto, acknowledged when a message is safe here."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiomqtt
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.servers import SharedServer
from tests.service.ingest.conftest import World, running
from tests.waiting import until


@pytest.fixture
async def bridged(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    mosquitto_server: SharedServer,
) -> AsyncIterator[World]:
    """An ingest that listens to a broker on behalf of the world's tenant."""
    tenant_id = uuid4()
    settings = settings.model_copy(
        update={
            "bridge_broker": mosquitto_server.url,
            "bridge_tenant": str(tenant_id),
            "bridge_topic": f"plant/{tenant_id}/+/telemetry",
            "bridge_client_id": f"bridge-{tenant_id}",
        }
    )
    app = build(settings, bus, SystemClock(), keys=keys)
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        await until(lambda: world.app.state.bridge.is_connected, "the bridge is up")
        yield world


def site(server: SharedServer) -> aiomqtt.Client:
    parts = urlsplit(server.url)
    return aiomqtt.Client(parts.hostname or "", parts.port or 1883, identifier=f"plc-{uuid4()}")


async def publish(
    world: World, server: SharedServer, device_id: UUID, *payloads: str | bytes
) -> None:
    async with site(server) as plc:
        for payload in payloads:
            await plc.publish(f"plant/{world.tenant_id}/{device_id}/telemetry", payload, qos=1)


async def test_what_a_plc_tells_its_own_broker_is_stored(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    ts = int(datetime.now(UTC).timestamp() * 1000)
    payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(50)]
    await publish(bridged, mosquitto_server, device_id, *payloads)
    points = await bridged.until_stored(device_id, 50)
    assert [value for _, _, value in points] == [float(n) for n in range(50)]


async def test_bad_messages_and_strangers_do_not_stop_the_bridge(
    bridged: World, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, uuid4(), '{"temp": 1}')
    await publish(bridged, mosquitto_server, device_id, b"\x00\xff", "", '{"temp": 2}')
    assert [value for _, _, value in await bridged.until_stored(device_id, 1)] == [2.0]

    async def both_quarantined() -> bool:
        listed = await bridged.http.get(
            f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=bridged.headers
        )
        return [e["reason"] for e in listed.json()["items"]] == ["malformed", "malformed"]

    await until(both_quarantined, "two refusals in quarantine")


async def test_what_was_not_safe_when_the_bridge_died_comes_again(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 0}')
    await bridged.until_stored(device_id, 1)
    bridge, intake = bridged.app.state.bridge, bridged.app.state.intake
    taken: list[float] = []
    add = intake.add

    def take_and_lose(source: object, decoded: object, done: object) -> list[object]:
        taken.append(decoded.points[0].value)  # type: ignore[attr-defined]  # a Decoded
        return []

    monkeypatch.setattr(intake, "add", take_and_lose)
    ts = int(datetime.now(UTC).timestamp() * 1000)
    payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(1, 6)]
    await publish(bridged, mosquitto_server, device_id, *payloads)
    await until(lambda: len(taken) == 5, "five messages taken and not acknowledged")
    bridge._task.cancel()
    await asyncio.gather(bridge._task, return_exceptions=True)
    monkeypatch.setattr(intake, "add", add)
    bridge.start()
    points = await bridged.until_stored(device_id, 6)
    assert sorted(value for _, _, value in points) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
