"""Devices that break the rules, stall, flood or come in thousands: they harm themselves alone."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias
from uuid import UUID, uuid4

import aiomqtt
import pytest
import trustme

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from services.ingest.app import build
from services.ingest.domain.token import new_token
from services.ingest.protocols.mqtt.endpoint import Connection, Endpoint
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.packets import ConnectCode
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.unit.ingest.mqtt import device_packets as packets
from tests.waiting import until

RunWith: TypeAlias = "Callable[..., AsyncIterator[World]]"
ACCEPTED = bytes([0x20, 2, 0, ConnectCode.ACCEPTED])


@pytest.fixture
def run_with(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> Callable[..., object]:
    """Run an ingest with other settings."""

    @asynccontextmanager
    async def run(**update: object) -> AsyncIterator[World]:
        app = build(settings.model_copy(update=update), bus, SystemClock(), keys=keys)
        tenant_id = uuid4()
        async with running(
            app, bus, database_urls, tenant_id, principal_headers(tenant_id)
        ) as world:
            yield world

    return run


class Raw:
    """A device of bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))
        await self.writer.drain()

    async def receive(self, count: int) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(count)

    async def is_closed(self, within_s: float = 10) -> bool:
        """Read until the other side closes; False if it does not in time."""
        try:
            async with asyncio.timeout(within_s):
                while await self.reader.read(65_536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()


@asynccontextmanager
async def raw(world: World, **options: object) -> AsyncIterator[Raw]:
    """Open a socket to where devices connect."""
    device = Raw(
        *await asyncio.open_connection(
            "127.0.0.1",
            world.mqtt_port,
            **options,  # type: ignore[arg-type]  # what asyncio takes
        )
    )
    try:
        yield device
    finally:
        await device.close()


@asynccontextmanager
async def logged_in(world: World) -> AsyncIterator[tuple[Raw, UUID]]:
    device_id, token = await world.device()
    async with raw(world) as device:
        await device.send(packets.connect(str(device_id), str(device_id), token.encode()))
        assert await device.receive(4) == ACCEPTED
        yield device, device_id


def endpoint_of(world: World) -> Endpoint:
    endpoint: Endpoint = world.app.state.endpoint
    return endpoint


async def still_works(world: World) -> None:
    """A well-behaved device is served as if nothing had happened."""
    async with logged_in(world) as (device, device_id):
        name = str(device_id)
        await device.send(packets.publish(packet_id=7, device=name))
        assert await device.receive(4) == packets.puback(7)
    assert await world.until_stored(device_id, 1)


async def refusal(world: World, connect: bytes) -> int:
    """Return the code that a CONNECT is refused with; the connection must be closed too."""
    async with raw(world) as device:
        await device.send(connect)
        answer = await device.receive(4)
        assert answer[:3] == b"\x20\x02\x00"
        assert await device.is_closed()
        return answer[3]


async def test_credentials_that_are_wrong_are_refused_with_the_code_for_it(world: World) -> None:
    device_id, token = await world.device()
    other_id, _ = await world.device()
    own, other, secret = str(device_id), str(other_id), token.encode()

    assert await refusal(world, packets.connect(own, own, b"wrong")) == 4
    assert await refusal(world, packets.connect(own, own, b"iiotd_" + b"A" * 43)) == 4
    assert await refusal(world, packets.connect(own, own, b"\xff\x00\xfe")) == 4
    assert await refusal(world, packets.connect(other, other, secret)) == 4
    assert await refusal(world, packets.connect("pump", "pump", secret)) == 4
    assert await refusal(world, packets.connect(own, other, secret)) == 2
    assert await refusal(world, packets.connect(own, None, None)) == 5
    assert await refusal(world, packets.connect("", own, secret)) == 2
    foreign_will = (packets.topic("alerts", other), b"{}")
    assert await refusal(world, packets.connect(own, own, secret, will=foreign_will)) == 5
    await still_works(world)


@pytest.mark.parametrize(
    "will_topic", [b"v1/devices/+/alerts", b"#", b"", b"v1/\0", b"v1/\xff\xfe"]
)
async def test_a_will_for_no_topic_at_all_closes_the_connection(
    world: World, will_topic: bytes
) -> None:
    device_id, token = await world.device()
    own = str(device_id)
    async with raw(world) as device:
        await device.send(packets.connect(own, own, token.encode(), will=(will_topic, b"{}")))
        assert await device.is_closed()
    await still_works(world)


@pytest.mark.parametrize(
    "topic_filter",
    [b"#", b"+/devices/+/commands", b"$share/all/v1/devices/+/telemetry", b"$SYS/#"],
)
async def test_a_device_may_not_listen_to_others(world: World, topic_filter: bytes) -> None:
    async with logged_in(world) as (device, device_id):
        own = packets.topic("commands", str(device_id))
        await device.send(packets.subscribe(9, (topic_filter, 1), (own, 1)))
        assert await device.receive(6) == b"\x90\x04\x00\x09\x80\x01"


async def test_a_packet_too_large_closes_the_connection_before_it_is_read(world: World) -> None:
    async with logged_in(world) as (device, device_id):
        whole = packets.publish(payload=b" " * 262_144, packet_id=1, device=str(device_id))
        await device.send(whole[:64])
        assert await device.is_closed()
    async with raw(world) as device:
        await device.send(b"\x10\xff\xff\xff\x7f")
        assert await device.is_closed()
    await still_works(world)


@pytest.mark.parametrize(
    "rubbish",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\0" * 100, b"\xff" * 1000],
)
async def test_who_speaks_no_mqtt_is_cut_off(world: World, rubbish: bytes) -> None:
    async with raw(world) as stranger:
        await stranger.send(rubbish)
        assert await stranger.is_closed()
    await until(lambda: not endpoint_of(world).connections, "no connection left")


async def test_who_says_connect_a_byte_at_a_time_is_cut_off_in_time(world: World) -> None:
    endpoint_of(world).limits = Limits(connect_timeout=0.5)
    device_id, token = await world.device()
    slowly = packets.connect(str(device_id), str(device_id), token.encode())
    async with raw(world) as silent, raw(world) as slow:

        async def drip() -> None:
            for byte in slowly:
                await slow.send(bytes([byte]))
                await asyncio.sleep(0.1)

        dripping = asyncio.create_task(drip())
        assert await silent.is_closed(within_s=5)
        assert await slow.is_closed(within_s=5)
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
    await until(lambda: not endpoint_of(world).connections, "no connection left")


async def test_more_connections_than_allowed_are_turned_away_and_those_there_stay(
    run_with: Callable[..., object],
) -> None:
    async with run_with(mqtt_connections=3) as world:  # type: ignore[attr-defined]  # see run_with
        async with logged_in(world) as (device, _), raw(world), raw(world):
            await until(lambda: len(endpoint_of(world).connections) == 3, "three connections")
            async with raw(world) as fourth:
                assert await fourth.is_closed()
            await device.send(packets.PINGREQ)
            assert await device.receive(2) == b"\xd0\x00"
        await until(lambda: not endpoint_of(world).connections, "no connection left")
        await still_works(world)


async def test_two_thousand_connections_come_and_go_and_leave_nothing_behind(
    world: World,
) -> None:
    devices = [await world.device() for _ in range(20)]
    endpoint = endpoint_of(world)

    async def come_and_go(number: int) -> None:
        device_id, token = devices[number % len(devices)]
        async with raw(world) as device:
            if number % 4 == 0:
                return
            if number % 4 == 1:
                await device.send(b"\x10\x20rubb")
                return
            await device.send(packets.connect(str(device_id), str(device_id), token.encode()))
            if number % 4 == 2:
                return
            try:
                await device.receive(4)
            except asyncio.IncompleteReadError:
                return  # the same device came again meanwhile
            device.writer.transport.abort()

    for start in range(0, 2_000, 250):
        await asyncio.gather(*(come_and_go(start + number) for number in range(250)))
    await until(lambda: not endpoint.connections, "no connection left", within_s=20)
    await until(lambda: not endpoint.reception.tasks, "no task left")
    assert endpoint.by_device == {}
    await still_works(world)


async def test_a_flood_is_held_back_by_the_sockets_and_all_that_is_acknowledged_is_stored(
    run_with: Callable[..., object],
) -> None:
    """40 devices send 12,000 points at once to a platform that holds 2,000, with a bus that stutters."""
    async with run_with(pending_points=2_000) as world:  # type: ignore[attr-defined]  # see run_with
        intake = world.app.state.intake
        publish, calls = intake._publish, 0

        async def stutter(messages: Sequence[Message]) -> None:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise Unavailable("the bus is away for a moment")
            await asyncio.sleep(0.05)
            await publish(messages)

        intake._publish = stutter
        peak = 0
        note_taken = intake._note_taken

        def note(*arguments: object) -> None:
            nonlocal peak
            note_taken(*arguments)
            peak = max(peak, intake._open_points + intake._leaving_points)

        intake._note_taken = note
        first = int(datetime.now(UTC).timestamp() * 1000) - 100_000

        async def flood(device_id: UUID, token: str) -> None:
            name = str(device_id)
            async with raw(world) as device:
                await device.send(packets.connect(name, name, token.encode()))
                assert await device.receive(4) == ACCEPTED
                # Known metrics: what waits for a registration is not taken, but held by its sender.
                known = b'{"ts": %d, "values": {"a": 0, "b": 0, "c": 0}}' % (first - 1)
                await device.send(packets.publish(payload=known, packet_id=1, device=name))
                assert await device.receive(4) == packets.puback(1)
                ready.release()
                await start.wait()
                await device.send(
                    *(
                        packets.publish(
                            payload=json.dumps(
                                {"ts": first + n, "values": {"a": n, "b": n, "c": n}}
                            ).encode(),
                            packet_id=n + 1,
                            device=name,
                        )
                        for n in range(100)
                    )
                )
                assert await device.receive(400) == b"".join(
                    packets.puback(n + 1) for n in range(100)
                )

        devices = [await world.device() for _ in range(40)]
        ready, start = asyncio.Semaphore(0), asyncio.Event()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(flood(*device))
            for _ in devices:
                await ready.acquire()
            peak = 0
            start.set()
        for device_id, _ in devices:
            assert len(await world.until_stored(device_id, 303)) == 303
        # The limit, and what one segment of one device holds beyond it.
        assert peak < 2_000 + 1_000
        assert not intake.is_full


async def test_a_device_that_reads_no_answers_is_read_no_more(world: World) -> None:
    async with logged_in(world) as (device, device_id):
        connection: Connection = endpoint_of(world).by_device[device_id]
        connection.pause_writing()
        await device.send(packets.PINGREQ)
        assert not await device.is_closed(within_s=0.2)
        connection.resume_writing()
        assert await device.receive(2) == b"\xd0\x00"


async def test_the_kernel_looks_after_devices_without_a_keep_alive(world: World) -> None:
    async with logged_in(world) as (_, device_id):
        transport = endpoint_of(world).by_device[device_id]._transport
        assert transport is not None
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000


async def test_one_connections_trouble_stops_no_other_ones_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = endpoint_of(world)
    endpoint.limits = Limits(connect_timeout=0.5)

    tick = Connection.tick

    async with logged_in(world) as (_, device_id):
        broken = endpoint.by_device[device_id]

        def fail(connection: Connection, at: datetime, now: float) -> None:
            if connection is broken:
                raise RuntimeError("a fault")
            tick(connection, at, now)

        monkeypatch.setattr(Connection, "tick", fail)
        window = endpoint.reception.window
        await until(lambda: endpoint.reception.window != window, "a tick")
        async with raw(world) as silent:
            assert await silent.is_closed(within_s=5)


async def test_a_login_that_the_platform_fails_at_is_answered_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, token = await world.device()
    own = str(device_id)

    async def fail(_: str) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(world.app.state.sources, "login", fail)
        assert await refusal(world, packets.connect(own, own, token.encode())) == 3
    await still_works(world)


async def test_a_message_that_the_platform_fails_at_is_acknowledged_into_quarantine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(endpoint_of(world).reception.reports, "take", fail)
    async with logged_in(world) as (device, device_id):
        name = str(device_id)
        await device.send(
            packets.publish("alerts", b'{"message": "oil low"}', packet_id=1, device=name),
            packets.publish(payload=b'{"temp": 1}', packet_id=2, device=name),
        )
        expected = packets.puback(1) + packets.puback(2)
        assert await device.receive(len(expected)) == expected
    await world.until_stored(device_id, 1)
    [entry] = await world.query(
        "SELECT reason, channel FROM ingest.quarantine WHERE device_id = $1", device_id
    )
    assert (entry["reason"], entry["channel"]) == ("internal", "alerts")


async def test_messages_without_a_time_that_come_in_one_segment_are_all_stored(
    world: World,
) -> None:
    async with logged_in(world) as (device, device_id):
        name = str(device_id)
        await device.send(
            *(
                packets.publish(payload=b'{"temp": %d}' % n, packet_id=n + 1, device=name)
                for n in range(50)
            ),
        )
        expected = b"".join(packets.puback(n + 1) for n in range(50))
        assert await device.receive(len(expected)) == expected
    points = await world.until_stored(device_id, 50)
    assert [value for _, _, value in points] == [float(n) for n in range(50)]


async def test_readings_without_a_time_in_one_array_are_all_stored(world: World) -> None:
    async with logged_in(world) as (device, device_id):
        payload = json.dumps([{"temp": n} for n in range(50)]).encode()
        await device.send(packets.publish(payload=payload, packet_id=1, device=str(device_id)))
        assert await device.receive(4) == packets.puback(1)
    points = await world.until_stored(device_id, 50)
    assert [value for _, _, value in points] == [float(n) for n in range(50)]


async def test_rubbish_in_quarantine_takes_no_neighbours_points_with_it(world: World) -> None:
    """Names and times with U+0000, which PostgreSQL's text cannot hold, used to fail whole batches."""
    async with logged_in(world) as (device, device_id):
        name = str(device_id)
        await device.send(
            packets.publish(payload=b'{"temp": 1}', packet_id=1, device=name),
            packets.publish(
                payload=b'{"ts": 1, "values": {}, "a\\u0000b": 1}', packet_id=2, device=name
            ),
            packets.publish(
                payload=b'{"ts": "2999-01-01\\u000000:00:00Z", "values": {"a": 1}}',
                packet_id=3,
                device=name,
            ),
            packets.publish(payload=b'{"big": 1%s}' % (b"0" * 400), packet_id=4, device=name),
            packets.publish("status", b'{"status": "on\\u0000line"}', packet_id=5, device=name),
            packets.publish(
                "status", b'{"status": "online", "reason": "\\u0000"}', packet_id=6, device=name
            ),
            packets.publish("alerts", b'{"message": "oil\\u0000 low"}', packet_id=7, device=name),
            packets.publish(payload=b'{"temp": 2}', packet_id=8, device=name),
        )
        expected = b"".join(packets.puback(n) for n in range(1, 9))
        assert await device.receive(len(expected)) == expected
    points = await world.until_stored(device_id, 2)
    assert sorted(value for _, _, value in points) == [1.0, 2.0]

    async def all_six() -> bool:
        rows = await world.query("SELECT 1 FROM ingest.quarantine WHERE device_id = $1", device_id)
        return len(rows) == 6

    await until(all_six, "six entries in quarantine")


class Site:
    """A certificate for this host, and clients that trust whom they should."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        certificate = self.ca.issue_cert("127.0.0.1")
        self.certificate = directory / "server.pem"
        self.key = directory / "server.key"
        self.certificate.write_bytes(b"".join(c.bytes() for c in certificate.cert_chain_pems))
        self.key.write_bytes(certificate.private_key_pem.bytes())

    def trusting(self, ca: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context()
        ca.configure_trust(context)
        return context


async def test_devices_connect_by_tls_and_trust_none_but_their_own_ca(
    run_with: Callable[..., object], tmp_path: Path
) -> None:
    site = Site(tmp_path)
    async with run_with(  # type: ignore[attr-defined]  # see run_with
        mqtt_tls_port=0, mqtt_tls_certificate=site.certificate, mqtt_tls_key=site.key
    ) as world:
        device_id, token = await world.device()

        def client(context: ssl.SSLContext) -> aiomqtt.Client:
            return aiomqtt.Client(
                hostname="127.0.0.1",
                port=world.app.state.mqtt_tls_port,
                identifier=str(device_id),
                username=str(device_id),
                password=token,
                tls_context=context,
                timeout=5,
            )

        # More than one record, and more than a pause: back-pressure works through TLS too.
        ts = int(datetime.now(UTC).timestamp() * 1000) - 10_000
        async with client(site.trusting(site.ca)) as device:
            world.app.state.intake.is_full = True
            for number in range(300):
                payload = json.dumps({"ts": ts + number, "values": {"temp": number}})
                await device.publish(f"v1/devices/{device_id}/telemetry", payload, qos=0)
                if number == 200:
                    world.app.state.intake.is_full = False
                    endpoint_of(world)._settle_all()
        assert len(await world.until_stored(device_id, 300)) == 300

        port = world.app.state.mqtt_tls_port
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port, ssl=site.trusting(trustme.CA()))
        old = site.trusting(site.ca)
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=old)
        # Plain MQTT to the port of TLS, and a handshake that never comes.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        stranger = Raw(reader, writer)
        await stranger.send(packets.connect(str(device_id), str(device_id), token.encode()))
        assert await stranger.is_closed()
        await stranger.close()
        await still_works(world)


async def test_mosquitto_pub_speaks_tls_to_whom_it_trusts_and_to_nobody_else(
    run_with: Callable[..., object], tmp_path: Path
) -> None:
    site = Site(tmp_path)
    trusted, other = tmp_path / "ca.pem", tmp_path / "other.pem"
    site.ca.cert_pem.write_to_path(trusted)
    trustme.CA().cert_pem.write_to_path(other)
    mosquitto_pub = shutil.which("mosquitto_pub")
    if mosquitto_pub is None:
        pytest.fail("mosquitto_pub is missing: install mosquitto-clients")
    async with run_with(  # type: ignore[attr-defined]  # see run_with
        mqtt_tls_port=0, mqtt_tls_certificate=site.certificate, mqtt_tls_key=site.key
    ) as world:
        device_id, token = await world.device()

        async def publish(value: int, *options: str) -> int:
            command = [mosquitto_pub, "-h", "127.0.0.1", "-p", str(world.app.state.mqtt_tls_port)]
            command += ["-i", str(device_id), "-u", str(device_id), "-P", token, "-q", "1"]
            command += ["-t", f"v1/devices/{device_id}/telemetry", "-m", f'{{"temp": {value}}}']
            done = await asyncio.to_thread(
                subprocess.run, [*command, *options], capture_output=True, timeout=20
            )
            return done.returncode

        assert await publish(1, "--cafile", str(trusted)) == 0
        assert await publish(2, "--cafile", str(other)) != 0
        assert await publish(3, "--cafile", str(trusted), "--tls-version", "tlsv1.3") == 0
        assert await publish(4) != 0, "plain MQTT to the port of TLS"
        points = await world.until_stored(device_id, 2)
        assert [value for _, _, value in points] == [1.0, 3.0]


async def test_those_who_have_not_logged_in_leave_room_for_those_who_have(
    run_with: Callable[..., object],
) -> None:
    async with (
        run_with(mqtt_strangers=2) as world,  # type: ignore[attr-defined]  # see run_with
        logged_in(world) as (device, _),
        logged_in(world),
    ):
        async with raw(world), raw(world), raw(world) as third:
            assert await third.is_closed()
            await device.send(packets.PINGREQ)
            assert await device.receive(2) == b"\xd0\x00"
        await until(lambda: len(endpoint_of(world).connections) == 2, "the strangers are gone")
        await still_works(world)


async def test_one_address_has_a_part_of_the_room_for_those_who_have_not_logged_in(
    run_with: Callable[..., object],
) -> None:
    async with (
        run_with(mqtt_strangers_per_address=1) as world,  # type: ignore[attr-defined]  # see run_with
        raw(world, local_addr=("127.0.0.2", 0)),
    ):
        async with raw(world, local_addr=("127.0.0.2", 0)) as second:
            assert await second.is_closed()
        await still_works(world)


async def test_who_guesses_tokens_must_wait_and_known_devices_come_back_meanwhile(
    run_with: Callable[..., object],
) -> None:
    async with run_with(wrong_tokens_per_minute=3) as world:  # type: ignore[attr-defined]  # see run_with
        known, token = await world.device()
        unknown, other_token = await world.device()

        async def log_in(device_id: UUID, password: str) -> int:
            async with raw(world) as device:
                name = str(device_id)
                await device.send(packets.connect(name, name, password.encode()))
                return (await device.receive(4))[3]

        assert await log_in(known, token) == ConnectCode.ACCEPTED
        # The same wrong one again and again is one guess.
        wrong = [await log_in(known, new_token()) for _ in range(2)]
        stale = new_token()
        wrong += [await log_in(known, stale) for _ in range(5)]
        assert set(wrong) == {ConnectCode.BAD_CREDENTIALS}
        assert await log_in(known, new_token()) == ConnectCode.SERVER_UNAVAILABLE
        assert await log_in(unknown, other_token) == ConnectCode.SERVER_UNAVAILABLE
        assert await log_in(known, token) == ConnectCode.ACCEPTED
