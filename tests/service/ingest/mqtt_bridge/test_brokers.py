"""Brokers as the bridge may meet them: with TLS, and hostile ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import trustme

from deploy.local.mosquitto import Mosquitto, find_mosquitto
from deploy.local.processes import free_port
from services.ingest.protocols import mqtt_bridge, mqtt_client
from services.ingest.protocols.mqtt_bridge import Bridge
from services.ingest.usecases import connectors
from tests.service.ingest.mqtt_bridge.conftest import (
    BridgeTo,
    change,
    publish,
    reasons,
    until_state,
    until_up,
)
from tests.waiting import until


class SecureBroker:
    """A Mosquitto that listens by TLS too, and the CA of its certificate."""

    def __init__(self, directory: Path) -> None:
        ca = trustme.CA()
        certificate = ca.issue_cert("127.0.0.1")
        self.ca = directory / "ca.pem"
        ca.cert_pem.write_to_path(self.ca)
        served = directory / "server.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(served)
        port = free_port()
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
    async with bridge_to(secure.url, ca=secure.ca.read_text()) as world:
        await until_up(world)
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
) -> None:
    url, ca = secure.url, secure.ca
    if trusted == "another CA":
        ca = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(ca)
    elif trusted == "another name":
        url = url.replace("127.0.0.1", "localhost")
    own = {} if trusted == "those of the system" else {"ca": ca.read_text()}
    async with bridge_to(url, **own) as world:
        failed = await until_state(world, "failed")
        assert "certificate verify failed" in failed["reason"].lower()


class HostileBroker:
    """A broker that takes any CONNECT and then does as the test says."""

    def __init__(
        self,
        granted: bytes = b"\1",
        *sent: bytes,
        is_silent: bool = False,
        connack: bytes = b"\0\0",
    ) -> None:
        self.granted = granted
        self.sent = sent
        self.is_silent = is_silent
        self.connack = connack
        self.connections = 0
        self.open = 0
        self.acknowledged: list[int] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while self.is_silent:
                if not await reader.read(65_536):
                    return
            while True:
                kind = (await reader.readexactly(1))[0] & 0xF0
                body = await reader.readexactly((await reader.readexactly(1))[0] & 0x7F)
                if kind == 0x10:
                    writer.write(bytes([0x20, len(self.connack)]) + self.connack)
                elif kind == 0x80:
                    writer.write(bytes([0x90, 2 + len(self.granted)]) + body[:2] + self.granted)
                    for packet in self.sent:
                        writer.write(packet)
                elif kind == 0x40:
                    self.acknowledged.append(int.from_bytes(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    @asynccontextmanager
    async def listening(self, scheme: str = "mqtt") -> AsyncIterator[str]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        async with server:
            yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def packet_of(topic: str, payload: bytes, qos: int = 0, mid: int = 1) -> bytes:
    """Write a PUBLISH."""
    named = topic.encode()
    body = len(named).to_bytes(2) + named + (mid.to_bytes(2) if qos else b"") + payload
    length, left = b"", len(body)
    while True:
        left, digit = left >> 7, left & 0x7F
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([0x30 | qos << 1]) + length + body


SITE: dict[str, Any] = {"topics": [{"topic": "{device}"}]}


@pytest.mark.parametrize(
    ("granted", "state", "reason"),
    [
        (b"\x80\x80", "failed", "refuses all subscriptions"),
        (b"\1\x80", "degraded", "the broker refuses to tell of b/+"),
        (b"\0\1", "degraded", "QoS 0 alone, which may lose messages: a/+"),
    ],
)
async def test_what_the_broker_does_not_grant_is_told(
    bridge_to: BridgeTo, granted: bytes, state: str, reason: str
) -> None:
    async with HostileBroker(granted).listening() as url:
        wanted = [{"topic": "a/{device}"}, {"topic": "b/{device}"}]
        async with bridge_to(url, topics=wanted) as world:
            assert reason in (await until_state(world, state))["reason"]


async def test_a_broker_that_keeps_a_session_for_a_while_only_is_told_of(
    bridge_to: BridgeTo,
) -> None:
    an_hour = b"\x11" + (3_600).to_bytes(4)
    no_properties = b"\0"
    broker = HostileBroker(no_properties + b"\1", connack=b"\0\0\x05" + an_hour)
    async with broker.listening() as url, bridge_to(url, version="5", **SITE) as world:
        assert "away for 3600 s" in (await until_state(world, "degraded"))["reason"]


async def test_a_broker_that_never_answers_is_left_before_it_is_tried_again(
    bridge_to: BridgeTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "ANSWER_S", 0.05)
    monkeypatch.setattr(connectors, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(connectors, "LONGEST_PAUSE_S", 0.02)
    broker = HostileBroker(is_silent=True)
    async with broker.listening() as url, bridge_to(url):
        await until(lambda: broker.connections > 5, "tried again and again")
        assert broker.open <= 2


async def test_a_handshake_that_never_ends_ends_with_the_connector(bridge_to: BridgeTo) -> None:
    broker = HostileBroker(is_silent=True)
    async with broker.listening("mqtts") as url, bridge_to(url) as world:
        await until(lambda: broker.open == 1, "it tries")
        await change(world, is_enabled=False)
        await until(lambda: broker.open == 0, "it has given up", within_s=8)


async def test_a_flood_waits_at_the_broker_and_none_of_it_is_lost(
    bridge_to: BridgeTo, bridges: list[Bridge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_client, "MOST_WAITING_BYTES", 200_000)
    broker = HostileBroker()
    async with broker.listening() as url, bridge_to(url, **SITE) as world:
        device_id, _ = await world.device("press")
        intake = world.app.state.intake
        intake.is_full = True
        ts = int(datetime.now(UTC).timestamp() * 1000)
        flood = [
            packet_of(
                "press",
                json.dumps({"ts": ts + n, "values": {"temp": n}}).encode() + b" " * 10_000,
            )
            for n in range(2_000)
        ]
        broker.sent = tuple(flood)
        await change(world, name="again")
        held = 0

        async def is_held() -> bool:
            nonlocal held
            before, held = held, bridges[-1].waiting
            return held == before > 0

        await until(is_held, "messages read, and no more coming")
        assert held < 30
        intake.is_full = False
        for call in list(intake.on_room):
            call()
        assert len(await world.until_stored(device_id, 2_000)) == 2_000


async def test_of_a_giant_packet_no_more_is_held_than_its_beginning(
    bridge_to: BridgeTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_bridge, "LARGEST_BIRTH", 300_000)
    held: list[int] = []
    take = Bridge._take

    async def note(bridge: Bridge, client: Any, edge: Any, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes | bytearray)
        held.append(len(message.payload))
        await take(bridge, client, edge, message)

    monkeypatch.setattr(Bridge, "_take", note)
    giant = packet_of("press", b"x" * 30_000_000, 1, 7)
    broker = HostileBroker(b"\1", giant, packet_of("press", b'{"temp": 1}', 1, 8))
    async with broker.listening() as url, bridge_to(url, **SITE) as world:
        device_id, _ = await world.device("press")
        await change(world, name="again")
        await world.until_stored(device_id, 1)
        await until(lambda: {7, 8} <= set(broker.acknowledged), "both are acknowledged")
        assert max(held) < 500_000
        assert "too-large" in await reasons(world, device_id)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (packet_of("press", b"1", 2), "QoS 2"),
        (packet_of("press/+", b"1"), "topic"),
        (b"\x30\xff\xff\xff\xff\xff", "Protocol error"),
    ],
)
async def test_a_broker_that_breaks_the_protocol_is_left_and_the_reason_told(
    bridge_to: BridgeTo, packet: bytes, reason: str
) -> None:
    async with HostileBroker(b"\1", packet).listening() as url, bridge_to(url, **SITE) as world:
        assert reason in (await until_state(world, "failed"))["reason"]
