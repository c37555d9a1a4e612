"""Devices on real sockets: what was measured arrives, whatever happens to the connection."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from random import Random

import aiomqtt
import msgspec
import pytest
from fastapi import Response

from clients.simulator.commands import CommandFailed, Params
from clients.simulator.devices.device import Backoff, CredentialRefused, Device, Reading
from clients.simulator.devices.http import HttpDevice
from clients.simulator.devices.mqtt import MqttDevice
from deploy.local.mosquitto import Mosquitto
from tests.service.simulator.conftest import FakePlatform


def mqtt_device(port: int, capacity: int = 100_000) -> MqttDevice:
    device = MqttDevice("d-1", "token-1", Random(1), capacity, port=port, timeout=5)
    device.backoff.longest = 0.3
    return device


@contextlib.asynccontextmanager
async def running(device: Device) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(device.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drained(device: Device) -> None:
    async with asyncio.timeout(20):
        await device.drain()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the things waited for here have no event)
            await asyncio.sleep(0.01)


class Subscriber:
    """Hears what arrives at the broker."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client

    async def hears(self) -> tuple[str, int, dict[str, object]]:
        async with asyncio.timeout(10):
            message = await anext(aiter(self._client.messages))
        assert isinstance(message.payload, bytes)
        return str(message.topic), message.qos, msgspec.json.decode(message.payload)


@contextlib.asynccontextmanager
async def subscriber(port: int) -> AsyncIterator[Subscriber]:
    async with aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe("v1/devices/+/telemetry", qos=1)
        yield Subscriber(client)


async def test_a_reading_is_published_with_qos_1_on_the_devices_own_topic(
    mosquitto: Mosquitto,
) -> None:
    device = mqtt_device(mosquitto.port)
    async with subscriber(mosquitto.port) as heard, running(device):
        device.offer(1_700_000_000_000, {"temp": 21.5, "running": True, "mode": "auto"})
        await drained(device)
        assert await heard.hears() == (
            "v1/devices/d-1/telemetry",
            1,
            {
                "ts": 1_700_000_000_000,
                "values": {"temp": 21.5, "running": True, "mode": "auto"},
            },
        )
    assert (device.stats.acknowledged, device.stats.points) == (1, 3)


async def test_a_command_is_obeyed_and_answered(mosquitto: Mosquitto) -> None:
    def obey(name: str, params: Params) -> object:
        if name != "start":
            raise CommandFailed(f"no such command: {name}")
        return params

    device = mqtt_device(mosquitto.port)
    device.on_command = obey
    async with (
        running(device),
        aiomqtt.Client("127.0.0.1", mosquitto.port) as operator,
    ):
        await operator.subscribe("v1/devices/d-1/replies", qos=1)
        # What an operator sends before the device has subscribed would be heard by nobody.
        for command in (b"not a command", b'{"id": "c-1", "name": "start", "params": {"rpm": 9}}'):
            await operator.publish("v1/devices/d-1/commands", command, qos=1, retain=True)
        await operator.publish("v1/devices/d-1/commands", b'{"id": "c-2", "name": "fly"}', qos=1)
        replies: list[object] = []
        async with asyncio.timeout(10):
            async for message in operator.messages:
                reply = msgspec.json.decode(message.payload)
                if reply not in replies:
                    replies.append(reply)
                if len(replies) == 1 and reply["id"] == "c-1":
                    await operator.publish(
                        "v1/devices/d-1/commands", b'{"id": "c-2", "name": "fly"}', qos=1
                    )
                if len(replies) == 2:
                    break
    assert sorted(replies, key=str) == [
        {"id": "c-1", "status": "succeeded", "result": {"rpm": 9}},
        {"id": "c-2", "status": "failed", "error": "no such command: fly"},
    ]


async def test_readings_wait_while_the_broker_is_down_and_arrive_in_order(
    mosquitto: Mosquitto,
) -> None:
    device = mqtt_device(mosquitto.port)
    async with running(device):
        device.offer(1, {"n": 1.0})
        await drained(device)
        mosquitto.kill()
        for ts in range(2, 302):
            device.offer(ts, {"n": float(ts)})
        await asyncio.to_thread(mosquitto.start)
        acknowledged: list[int] = []
        device.on_acknowledged = lambda _, reading: acknowledged.append(reading.ts)
        await drained(device)
    assert acknowledged == list(range(2, 302))
    assert device.stats.acknowledged == device.stats.offered == 301
    assert device.stats.connects == 2


async def test_a_lost_connection_is_noticed_although_nothing_is_sent(
    mosquitto: Mosquitto,
) -> None:
    device = mqtt_device(mosquitto.port)
    async with running(device):
        device.offer(1, {"n": 1.0})
        await drained(device)
        assert device.is_connected
        mosquitto.kill()
        await until(lambda: not device.is_connected)


def test_a_full_queue_loses_its_oldest_and_counts_it() -> None:
    device = mqtt_device(1, capacity=10)
    for ts in range(1, 16):
        device.offer(ts, {"n": 0.0})
    assert device.backlog == 10
    assert device.stats.dropped == 5
    assert [reading.ts for reading in device._take()] == list(range(6, 16))


def test_two_readings_of_one_device_never_share_a_time_stamp() -> None:
    device = mqtt_device(1)
    assert [device.offer(5, {}).ts, device.offer(5, {}).ts, device.offer(3, {}).ts] == [5, 6, 7]


class Endpoint:
    """The least MQTT server: it answers CONNECT with `connack` and acknowledges as it is told."""

    def __init__(self, *, connack: int = 0, swallow: int = 0) -> None:
        self.connack = connack
        self.swallow = swallow
        """Publishes to take without an acknowledgement, then hang up."""
        self.published: list[int] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, body = await self._packet(reader)
                if kind == 1:
                    writer.write(bytes([0x20, 2, 0, self.connack]))
                    if self.connack:
                        break
                elif kind == 3:
                    topic = int.from_bytes(body[:2], "big")
                    packet_id, payload = body[2 + topic : 4 + topic], body[4 + topic :]
                    self.published.append(msgspec.json.decode(payload)["ts"])
                    if self.swallow:
                        self.swallow -= 1
                        if not self.swallow:
                            break
                    else:
                        writer.write(b"\x40\x02" + packet_id)
                elif kind == 14:
                    break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _packet(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        kind = (await reader.readexactly(1))[0] >> 4
        length, shift = 0, 0
        while True:
            byte = (await reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return kind, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def listening(endpoint: Endpoint) -> AsyncIterator[int]:
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_what_was_not_acknowledged_is_sent_again_with_its_old_time_stamp() -> None:
    endpoint = Endpoint(swallow=3)
    async with listening(endpoint) as port:
        device = mqtt_device(port)
        for ts in (10, 20, 30, 40):
            device.offer(ts, {"n": 1.0})
        async with running(device), asyncio.timeout(device.timeout / 2):
            # Sooner than its patience is at an end: it notices that the connection is gone.
            await drained(device)
    assert endpoint.published[:3] == [10, 20, 30]
    assert endpoint.published[3:] == [10, 20, 30, 40]
    assert device.stats.acknowledged == 4
    assert device.stats.sent >= 7


@pytest.mark.parametrize("connack", [2, 4, 5])
async def test_a_refused_token_ends_the_device_instead_of_hammering_the_door(connack: int) -> None:
    endpoint = Endpoint(connack=connack)
    async with listening(endpoint) as port:
        device = mqtt_device(port)
        with pytest.raises(CredentialRefused):
            async with asyncio.timeout(30):
                await device.run()
    assert device.is_refused
    assert endpoint.connections == 1


async def test_a_platform_that_is_busy_is_tried_again() -> None:
    endpoint = Endpoint(connack=3)
    async with listening(endpoint) as port:
        device = mqtt_device(port)
        async with running(device):
            device.offer(1, {"n": 1.0})
            await until(lambda: endpoint.connections >= 2)
            endpoint.connack = 0
            await drained(device)
    assert device.stats.acknowledged == 1


@pytest.fixture
def mute_port() -> Iterator[int]:
    """Yield a port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def test_a_server_that_says_nothing_is_given_up_and_left_behind_clean(
    mute_port: int,
) -> None:
    device = mqtt_device(mute_port)
    device.timeout = 0.1
    async with running(device):
        await until(lambda: device.backoff.attempt >= 3)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    async with asyncio.timeout(30):
        await asyncio.gather(*others, return_exceptions=True)


async def http_device(platform: FakePlatform) -> HttpDevice:
    platform.tokens["d-2"] = "token-2"
    device = HttpDevice("d-2", "token-2", Random(1), url=platform.url)
    device.backoff.longest = 0.1
    return device


async def test_an_http_reading_is_acknowledged_by_202(platform: FakePlatform) -> None:
    device = await http_device(platform)
    async with running(device):
        device.offer(7, {"power": 1.5, "breaker_closed": True})
        await drained(device)
        assert device.is_connected
    assert platform.telemetry == [("d-2", 7)]
    assert device.stats.points == 2


async def test_an_http_device_waits_out_an_overload_and_loses_nothing(
    platform: FakePlatform,
) -> None:
    device = await http_device(platform)
    platform.answers = [
        Response(status_code=503),
        Response(status_code=429, headers={"retry-after": "1"}),
        Response(status_code=500),
    ]
    for ts in range(1, 21):
        device.offer(ts, {"n": 1.0})
    async with running(device):
        await drained(device)
    assert sorted(platform.telemetry) == [("d-2", ts) for ts in range(1, 21)]
    assert device.stats.acknowledged == 20


async def test_a_reading_that_the_platform_will_never_take_does_not_block_the_next(
    platform: FakePlatform,
) -> None:
    device = await http_device(platform)
    device.window = 1
    platform.answers = [
        Response(status_code=422),
        Response('{"accepted": 0, "rejected": 1}', status_code=202),
    ]
    for ts in (1, 2, 3):
        device.offer(ts, {"n": 1.0})
    async with running(device):
        await drained(device)
    assert platform.telemetry == [("d-2", 3)]
    assert (device.stats.rejected, device.stats.acknowledged) == (2, 1)


async def test_an_http_device_with_a_revoked_token_ends_and_keeps_its_readings(
    platform: FakePlatform,
) -> None:
    device = await http_device(platform)
    del platform.tokens["d-2"]
    device.offer(1, {"n": 1.0})
    with pytest.raises(CredentialRefused):
        async with asyncio.timeout(30):
            await device.run()
    assert device.backlog == 1


def asked(identifier: str, name: str, **params: object) -> dict[str, object]:
    return {"id": identifier, "name": name, "params": params, "expires_at": "2099-01-01T00:00:00Z"}


async def test_an_http_device_does_what_it_is_told_and_says_how_it_went(
    platform: FakePlatform,
) -> None:
    device = await http_device(platform)
    done: list[tuple[str, Params]] = []

    def obey(name: str, params: Params) -> object:
        if name != "start":
            raise CommandFailed(f"a pump does not {name}")
        done.append((name, params))
        return {"state": "starting"}

    device.on_command = obey
    async with running(device):
        await until(lambda: platform.polls > 1)
        assert device.is_connected, "the platform answered, though nothing was measured yet"
        platform.commands["d-2"] = [asked("c-1", "start", rpm=900), asked("c-2", "fly")]
        await until(lambda: len(platform.replies) == 2)
        # It comes again, as it does when the reply was lost on its way.
        platform.commands["d-2"] = [asked("c-1", "start", rpm=900)]
        await until(lambda: len(platform.replies) == 3)
    said = ("d-2", "c-1", {"status": "succeeded", "result": {"state": "starting"}})
    assert platform.replies == [
        said,
        ("d-2", "c-2", {"status": "failed", "error": "a pump does not fly"}),
        said,
    ]
    assert done == [("start", {"rpm": 900})]
    assert device.stats.commands == 2


async def test_an_http_device_that_listens_alone_is_turned_away_with_a_revoked_token(
    platform: FakePlatform,
) -> None:
    device = await http_device(platform)
    device.on_command = lambda name, params: None
    async with running(device) as task:
        await until(lambda: platform.polls > 1)
        del platform.tokens["d-2"]
        platform.commands["d-2"] = []
        with pytest.raises(CredentialRefused):
            async with asyncio.timeout(30):
                await task
    assert device.is_refused


def test_the_delay_grows_is_bounded_and_begins_again() -> None:
    backoff = Backoff(Random(1), first=1, longest=8)
    delays = [backoff.delay() for _ in range(20)]
    assert all(0.1 <= delay <= 8 for delay in delays)
    assert delays[0] <= 1
    assert max(delays) > 4
    backoff.reset()
    assert backoff.delay() <= 1


def test_a_token_does_not_show_in_a_devices_representation() -> None:
    assert "token-1" not in repr(mqtt_device(1))
    assert Reading(1, {"n": 1.0}).body() == b'{"ts":1,"values":{"n":1.0}}'
