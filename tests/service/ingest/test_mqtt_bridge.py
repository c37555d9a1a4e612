"""The bridge to a site's own broker: a real Mosquitto, acknowledged when a message is safe here."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import aiomqtt
import pytest
import trustme

from deploy.local.mosquitto import Mosquitto, find_mosquitto
from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import to_message
from libs.common.events.tenancy import TenantUpdated
from services.ingest.app import build
from services.ingest.domain.payload import decode
from services.ingest.protocols import mqtt_bridge
from services.ingest.protocols.mqtt_bridge import Bridge
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.servers import SharedServer
from tests.service.ingest.conftest import World, running
from tests.waiting import until

Broker: TypeAlias = SharedServer | Mosquitto
BridgeTo: TypeAlias = "Callable[..., AbstractAsyncContextManager[World]]"


@pytest.fixture
def bridge_to(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> BridgeTo:
    """Run an ingest that listens to a broker on behalf of the world's tenant."""

    @asynccontextmanager
    async def run(url: str, **update: object) -> AsyncIterator[World]:
        tenant_id = uuid4()
        own = settings.model_copy(
            update={
                "bridge_broker": url,
                "bridge_tenant": str(tenant_id),
                "bridge_topic": f"plant/{tenant_id}/+/telemetry",
                "bridge_client_id": f"bridge-{tenant_id}",
                **update,
            }
        )
        app = build(own, bus, SystemClock(), keys=keys)
        async with running(
            app, bus, database_urls, tenant_id, principal_headers(tenant_id)
        ) as world:
            yield world

    return run


@pytest.fixture
async def bridged(bridge_to: BridgeTo, mosquitto_server: SharedServer) -> AsyncIterator[World]:
    """An ingest whose bridge is up, to the broker of all tests."""
    async with bridge_to(mosquitto_server.url) as world:
        await until(lambda: bridge_of(world).is_connected, "the bridge is up")
        yield world


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of the test's own, which may be stopped."""
    broker = Mosquitto(tmp_path / "mosquitto", find_mosquitto())
    broker.start()
    yield broker
    broker.stop()


def bridge_of(world: World) -> Bridge:
    bridge: Bridge = world.app.state.bridge
    return bridge


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

    await until_quarantined(bridged, device_id, "malformed", "malformed")


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
    await bridge.stop()
    monkeypatch.setattr(intake, "add", add)
    bridge.start()
    points = await bridged.until_stored(device_id, 6)
    assert sorted(value for _, _, value in points) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


async def test_the_bridge_comes_back_when_its_broker_does(
    bridge_to: BridgeTo, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "FIRST_PAUSE_S", 0.02)
    async with bridge_to(broker.url) as world:
        bridge = bridge_of(world)
        await until(lambda: bridge.is_connected, "the bridge is up")
        device_id, _ = await world.device()
        for number in range(1, 4):
            await asyncio.to_thread(broker.stop)
            await until(lambda: not bridge.is_connected, "the bridge is down")
            await asyncio.to_thread(broker.start)
            # It may come from the broker's memory: the bridge's session is a persistent one.
            await publish(world, broker, device_id, json.dumps({"temp": number}))
            points = await world.until_stored(device_id, number)
            assert [value for _, _, value in points] == [float(n + 1) for n in range(number)]


async def test_the_pause_between_attempts_grows_to_its_limit_and_is_short_again_after_success(
    bridge_to: BridgeTo, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(mqtt_bridge, "LONGEST_PAUSE_S", 0.08)
    url = broker.url
    await asyncio.to_thread(broker.stop)
    async with bridge_to(url) as world:
        bridge = bridge_of(world)
        listen = bridge._listen
        pauses: list[float] = []

        async def note() -> None:
            pauses.append(bridge.pause_s)
            await listen()

        monkeypatch.setattr(bridge, "_listen", note)
        await until(lambda: len(pauses) >= 8, "eight attempts")
        grown = [pause for pause in pauses if pause < 0.08]
        assert grown == sorted(set(grown)), "each is longer than the one before"
        assert set(pauses[-4:]) == {0.08}, "but none than the longest"
        await asyncio.to_thread(broker.start)
        await until(lambda: bridge.is_connected, "the bridge is up")
        assert bridge.pause_s == 0.01


async def test_a_message_that_is_too_large_is_refused_and_not_kept_in_full(
    bridge_to: BridgeTo, mosquitto_server: SharedServer
) -> None:
    async with bridge_to(
        mosquitto_server.url, mqtt_packet_bytes=2_000, quarantine_entry_bytes=500
    ) as world:
        await until(lambda: bridge_of(world).is_connected, "the bridge is up")
        device_id, _ = await world.device()
        fits = json.dumps({"temp": 1, "note": "x" * 1_900})
        large = json.dumps({"temp": 2, "note": "x" * 2_000})
        await publish(world, mosquitto_server, device_id, fits, large, '{"temp": 3}')
        points = await world.until_stored(device_id, 2)
        assert [value for _, _, value in points] == [1.0, 3.0]
        await until_quarantined(world, device_id, "too-large")
        [entry] = await world.query(
            "SELECT octet_length(payload) AS kept, cut_from FROM ingest.quarantine"
            " WHERE device_id = $1",
            device_id,
        )
        assert (entry["kept"], entry["cut_from"]) == (500, len(large))


async def test_a_stranger_s_message_is_logged_and_acknowledged(
    bridged: World,
    mosquitto_server: SharedServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bridge, stranger = bridge_of(bridged), uuid4()
    device_id, _ = await bridged.device()
    heard: list[str] = []
    take = bridge._take

    async def note(client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        heard.append(str(message.topic))
        await take(client, message)

    monkeypatch.setattr(bridge, "_take", note)
    await publish(bridged, mosquitto_server, stranger, '{"temp": 1}')
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await bridged.until_stored(device_id, 1)
    assert f"plant/{bridged.tenant_id}/{stranger}/telemetry" in capfd.readouterr().out
    # Were it not acknowledged, the broker would send it again before all that is new.
    await bridge.stop()
    bridge.start()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 2}')
    await bridged.until_stored(device_id, 2)
    assert sum(str(stranger) in topic for topic in heard) == 1


async def test_devices_of_a_suspended_tenant_are_strangers(
    bridged: World, bus: LocalBus, mosquitto_server: SharedServer
) -> None:
    device_id, _ = await bridged.device()
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    await bridged.until_stored(device_id, 1)

    async def say(status: str) -> None:
        event = TenantUpdated(
            tenant_id=bridged.tenant_id,
            at=datetime.now(UTC),
            slug="plant",
            name="the plant",
            status=status,
        )
        await bus.publish([to_message(event)])

    await say("suspended")
    await until(lambda: device_id not in bridge_of(bridged)._known, "the device is forgotten")
    await publish(bridged, mosquitto_server, device_id, '{"temp": 2}')
    await say("active")

    async def is_let_in() -> bool:
        await publish(bridged, mosquitto_server, device_id, '{"temp": 3}')
        return len(await bridged.stored(device_id)) > 1

    await until(is_let_in, "the device is heard again")
    assert 2.0 not in {value for _, _, value in await bridged.stored(device_id)}


async def test_a_full_intake_holds_the_broker_back_and_no_more_is_read_than_it_leaves_unacknowledged(
    bridge_to: BridgeTo, broker: Mosquitto
) -> None:
    """Mosquitto waits when 20 messages are not acknowledged (`max_inflight_messages`)."""
    async with bridge_to(broker.url) as world:
        await until(lambda: bridge_of(world).is_connected, "the bridge is up")
        device_id, _ = await world.device()
        await publish(world, broker, device_id, '{"ts": 1, "values": {}}', '{"temp": 0}')
        await world.until_stored(device_id, 1)
        intake = world.app.state.intake
        intake.is_full = True
        ts = int(datetime.now(UTC).timestamp() * 1000)
        payloads = [json.dumps({"ts": ts + n, "values": {"temp": n}}) for n in range(1, 101)]
        await publish(world, broker, device_id, *payloads)
        read = 0

        async def is_held() -> bool:
            nonlocal read
            before, read = read, bridge_of(world).waiting
            return read == before > 0

        await until(is_held, "messages read, and no more coming")
        # One is in hand, the others wait in the queue.
        assert read < 20
        assert len(await world.stored(device_id)) == 1
        intake.is_full = False
        for call in intake.on_room:
            call()
        points = await world.until_stored(device_id, 101)
        assert [value for _, _, value in points] == [float(n) for n in range(101)]


async def test_a_message_the_platform_fails_at_is_kept_and_those_behind_it_are_taken(
    bridged: World, mosquitto_server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await bridged.device()

    def fail(payload: bytes, *arguments: object) -> object:
        if payload == b"poison":
            raise RuntimeError("a fault")
        return decode(payload, *arguments)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(mqtt_bridge, "decode", fail)
    await publish(bridged, mosquitto_server, device_id, "poison", '{"temp": 1}')
    await bridged.until_stored(device_id, 1)
    await until_quarantined(bridged, device_id, "internal")


@pytest.mark.parametrize(
    "error", [Unavailable("the database is away"), RuntimeError("a fault"), OSError("no route")]
)
async def test_what_cannot_be_looked_up_now_comes_again(
    bridged: World,
    mosquitto_server: SharedServer,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """Whatever fails, the bridge does not end."""
    monkeypatch.setattr(mqtt_bridge, "FIRST_PAUSE_S", 0.01)
    device_id, _ = await bridged.device()
    sources = bridged.app.state.sources
    of_tenant, failures = sources.of_tenant, 0

    async def fail_twice(*arguments: object) -> object:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise error
        return await of_tenant(*arguments)

    monkeypatch.setattr(sources, "of_tenant", fail_twice)
    await publish(bridged, mosquitto_server, device_id, '{"temp": 1}')
    assert [value for _, _, value in await bridged.until_stored(device_id, 1)] == [1.0]
    assert failures == 2
    assert await reasons(bridged, device_id) == []


class SecureBroker:
    """A Mosquitto that listens by TLS too, and the CA of its certificate."""

    def __init__(self, directory: Path) -> None:
        ca = trustme.CA()
        certificate = ca.issue_cert("127.0.0.1")
        self.ca = directory / "ca.pem"
        ca.cert_pem.write_to_path(self.ca)
        served = directory / "server.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(served)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        self.broker = Mosquitto(
            directory / "mosquitto",
            find_mosquitto(),
            config=(
                f"listener {port} 127.0.0.1",
                f"certfile {served}",
                f"keyfile {served}",
            ),
        )
        self.url = f"mqtts://127.0.0.1:{port}"


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[SecureBroker]:
    secure = SecureBroker(tmp_path)
    secure.broker.start()
    yield secure
    secure.broker.stop()


async def test_the_bridge_speaks_tls_and_trusts_whom_it_is_told_to(
    bridge_to: BridgeTo, secure: SecureBroker, tmp_path: Path
) -> None:
    async with bridge_to(secure.url, bridge_ca=secure.ca) as world:
        await until(lambda: bridge_of(world).is_connected, "the bridge is up")
        device_id, _ = await world.device()
        await publish(world, secure.broker, device_id, '{"temp": 1}')
        await world.until_stored(device_id, 1)


# paho leaves a socket whose handshake failed to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")
@pytest.mark.parametrize("trusted", ["another CA", "those of the system", "another name"])
async def test_the_bridge_connects_to_no_broker_it_does_not_trust(
    bridge_to: BridgeTo,
    secure: SecureBroker,
    tmp_path: Path,
    trusted: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, ca = secure.url, secure.ca
    if trusted == "another CA":
        ca = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(ca)
    elif trusted == "another name":
        url = url.replace("127.0.0.1", "localhost")
    own = {} if trusted == "those of the system" else {"bridge_ca": ca}
    async with bridge_to(url, **own) as world:
        await until(lambda: bridge_of(world).pause_s > 0.5, "an attempt that failed")
        assert not bridge_of(world).is_connected
    assert "certificate verify failed" in capfd.readouterr().out.lower()
