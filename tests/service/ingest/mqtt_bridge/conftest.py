"""A bridge to a broker, and what the tests say about it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiomqtt
import pytest

from deploy.local.mosquitto import Mosquitto, find_mosquitto
from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.protocols.mqtt_bridge import Bridge
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.servers import SharedServer
from tests.service.ingest.conftest import World, running
from tests.waiting import until

Broker: TypeAlias = SharedServer | Mosquitto
BridgeTo: TypeAlias = "Callable[..., AbstractAsyncContextManager[World]]"

OF_INGEST = ("mqtt_packet_bytes", "quarantine_entry_bytes")


@pytest.fixture
def bridges(monkeypatch: pytest.MonkeyPatch) -> list[Bridge]:
    """All bridges that ran, the newest last."""
    bridges: list[Bridge] = []
    run = Bridge.run

    async def note(bridge: Bridge) -> None:
        bridges.append(bridge)
        await run(bridge)

    monkeypatch.setattr(Bridge, "run", note)
    return bridges


@pytest.fixture
def bridge_to(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    no_connectors_left: None,
) -> BridgeTo:
    """Run an ingest that a tenant has told to listen to a broker."""

    @asynccontextmanager
    async def run(url: str, **update: object) -> AsyncIterator[World]:
        tenant_id = uuid4()
        own = settings.model_copy(
            update={key: update.pop(key) for key in OF_INGEST if key in update}
        )
        app = build(own, bus, SystemClock(), keys=keys)
        async with running(
            app, bus, database_urls, tenant_id, principal_headers(tenant_id)
        ) as world:
            settings_of_it = {
                "url": url,
                "topics": [{"topic": f"plant/{tenant_id}/{{device}}/telemetry"}],
                **update,
            }
            answer = await world.http.post(
                "/api/v1/connectors",
                json={"name": "the site", "kind": "mqtt", "settings": settings_of_it},
                headers=world.headers,
            )
            assert answer.status_code == 201, answer.text
            yield world

    return run


@pytest.fixture
async def bridged(bridge_to: BridgeTo, mosquitto_server: SharedServer) -> AsyncIterator[World]:
    """An ingest whose bridge is up, to the broker of all tests."""
    async with bridge_to(mosquitto_server.url) as world:
        await until_up(world)
        yield world


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of the test's own, which may be stopped."""
    broker = Mosquitto(tmp_path / "mosquitto", find_mosquitto())
    broker.start()
    yield broker
    broker.stop()


async def connector_of(world: World) -> dict[str, Any]:
    """Return the tenant's connector as it is shown."""
    answer = await world.http.get("/api/v1/connectors", headers=world.headers)
    found: dict[str, Any] = answer.json()["items"][0]
    return found


async def until_state(world: World, *states: str) -> dict[str, Any]:
    async def is_so() -> bool:
        return (await connector_of(world))["state"] in states

    await until(is_so, f"the bridge is {states}")
    return await connector_of(world)


async def until_up(world: World) -> None:
    await until_state(world, "connected", "degraded")


async def change(world: World, **body: object) -> None:
    connector = await connector_of(world)
    answer = await world.http.patch(
        f"/api/v1/connectors/{connector['id']}", json=body, headers=world.headers
    )
    assert answer.status_code == 200, answer.text


async def topics(world: World, *topics: dict[str, object], **settings: object) -> None:
    """Tell the bridge to listen to other topics, and wait until it does."""
    was = await connector_of(world)
    await change(world, settings={**was["settings"], "topics": topics, **settings})
    version = was["version"] + 1

    async def does() -> bool:
        [row] = await world.query(
            "SELECT version, state, state_at >= updated_at AS is_new FROM ingest.connectors"
            " WHERE id = $1",
            UUID(was["id"]),
        )
        return (row["version"], row["state"], row["is_new"]) == (version, "connected", True)

    await until(does, "the bridge listens to other topics")


async def reasons(world: World, device_id: UUID) -> list[str]:
    """Return why messages of the device are in quarantine, newest first."""
    listed = await world.http.get(
        f"/api/v1/telemetry/quarantine?device_id={device_id}", headers=world.headers
    )
    return [entry["reason"] for entry in listed.json()["items"]]


async def until_quarantined(world: World, device_id: UUID, *expected: str) -> None:
    async def are_there() -> bool:
        return await reasons(world, device_id) == list(expected)

    await until(are_there, f"{expected} in quarantine")


def site(server: Broker) -> aiomqtt.Client:
    parts = urlsplit(server.url)
    return aiomqtt.Client(parts.hostname or "", parts.port or 1883, identifier=f"plc-{uuid4()}")


async def publish(world: World, server: Broker, device_id: UUID, *payloads: str | bytes) -> None:
    await publish_to(server, f"plant/{world.tenant_id}/{device_id}/telemetry", *payloads)


async def publish_to(server: Broker, topic: str, *payloads: str | bytes) -> None:
    async with site(server) as plc:
        for payload in payloads:
            await plc.publish(topic, payload, qos=1)
