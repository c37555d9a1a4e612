"""MQTT over WebSocket: frames cut as the client likes, what is no MQTT, and who holds back whom."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from services.ingest.protocols.mqtt import websocket
from services.ingest.protocols.mqtt.endpoint import Connection
from services.ingest.settings import Settings
from tests.service.ingest.conftest import World
from tests.waiting import until

MQTT = Subprotocol("mqtt")


def field(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(2) + data


def packet(first: int, body: bytes) -> bytes:
    length, rest = bytearray(), len(body)
    while True:
        length.append(rest & 0x7F | (0x80 if rest > 0x7F else 0))
        rest >>= 7
        if not rest:
            return bytes((first,)) + bytes(length) + body


def connect_packet(device_id: UUID, token: str, keep_alive: int = 60) -> bytes:
    named = field(str(device_id))
    head = field("MQTT") + b"\x04\xc2" + keep_alive.to_bytes(2)
    return packet(0x10, head + named + named + field(token))


def publish_packet(device_id: UUID, payload: bytes, packet_id: int = 1) -> bytes:
    topic = field(f"v1/devices/{device_id}/telemetry")
    return packet(0x32, topic + packet_id.to_bytes(2) + payload)


DISCONNECT = b"\xe0\x00"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"mqtt_websocket_port": 0})


@asynccontextmanager
async def open_socket(
    world: World, path: str = "/mqtt", **options: object
) -> AsyncIterator[ClientConnection]:
    port = world.app.state.mqtt_websocket_port
    wanted: dict[str, object] = {"subprotocols": [MQTT], "compression": None} | options
    async with connect(f"ws://127.0.0.1:{port}{path}", **wanted) as socket:  # type: ignore[arg-type]  # whatever a test wants to vary
        yield socket


async def receive(socket: ClientConnection, count: int) -> bytes:
    """Return so many bytes, however they are cut."""
    got = b""
    while len(got) < count:
        said = await asyncio.wait_for(socket.recv(), 15)
        assert isinstance(said, bytes)
        got += said
    return got


async def test_packets_are_cut_into_frames_as_the_client_likes(world: World) -> None:
    device_id, token = await world.device()
    async with open_socket(world) as socket:
        stream = connect_packet(device_id, token)
        for byte in stream:
            await socket.send(bytes((byte,)))
        assert await receive(socket, 4) == b"\x20\x02\x00\x00"
        two = publish_packet(device_id, b'{"temp": 1}', 1) + publish_packet(
            device_id, b'{"temp": 2}', 2
        )
        # One message in fragments, with packets' borders nowhere near the frames'.
        await socket.send([two[:5], two[5:60], two[60:]])
        assert await receive(socket, 8) == b"\x40\x02\x00\x01\x40\x02\x00\x02"
    assert [value for _, _, value in await world.until_stored(device_id, 2)] == [1.0, 2.0]


async def test_a_goodbye_in_the_last_frame_is_heard(world: World) -> None:
    device_id, token = await world.device()
    async with open_socket(world) as socket:
        await socket.send(connect_packet(device_id, token))
        await receive(socket, 4)
        await socket.send(publish_packet(device_id, b'{"temp": 1}') + DISCONNECT)

    async def left() -> bool:
        answer = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
        said = answer.json()
        return (said["status"], said["status_reason"]) == ("offline", "DISCONNECT")

    await until(left, "the device left in good order")
    assert await world.until_stored(device_id, 1)


async def test_text_is_no_mqtt(world: World) -> None:
    async with open_socket(world) as socket:
        await socket.send("hello")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1003


async def test_too_large_a_frame_is_not_waited_for(world: World) -> None:
    device_id, token = await world.device()
    async with open_socket(world) as socket:
        await socket.send(connect_packet(device_id, token))
        await receive(socket, 4)
        with suppress(ConnectionClosed):
            await socket.send(b"\x30" + bytes(5_000_000))
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    await until(lambda: not world.app.state.endpoint.connections, "the connection is over")


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/", {}, 404),
        ("/mqtt/more", {}, 404),
        ("/mqtt", {"subprotocols": None}, 400),
        ("/mqtt", {"subprotocols": [Subprotocol("stomp")]}, 400),
    ],
)
async def test_what_does_not_ask_for_mqtt_is_told_so(
    world: World, path: str, options: dict[str, object], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with open_socket(world, path, **options):
            pass
    assert refused.value.response.status_code == status
    await until(lambda: not world.app.state.endpoint.connections, "the connection is over")


async def test_plain_http_is_told_what_is_here(world: World) -> None:
    port = world.app.state.mqtt_websocket_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n")
    said = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    assert said.startswith(b"HTTP/1.1 426 ")


async def test_who_never_ends_the_handshake_is_a_stranger_until_its_time_is_over(
    world: World,
) -> None:
    endpoint = world.app.state.endpoint
    port = world.app.state.mqtt_websocket_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /mqtt HTTP/1.1\r\nHost: x\r\n")
    await until(lambda: len(endpoint.admission.strangers) == 1, "counted as a stranger")
    assert await asyncio.wait_for(reader.read(), 15) == b"", "closed without a word"
    writer.close()
    await until(lambda: not endpoint.admission.strangers, "forgotten")


async def test_a_removed_device_is_cut_off_with_a_close_frame(world: World) -> None:
    device_id, token = await world.device()
    async with open_socket(world) as socket:
        await socket.send(connect_packet(device_id, token))
        await receive(socket, 4)
        answer = await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
        assert answer.status_code == 204
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(socket.recv(), 5)
        assert socket.close_code == 1000


async def test_a_device_is_not_read_while_the_platform_has_enough(world: World) -> None:
    device_id, token = await world.device()
    intake = world.app.state.intake
    async with open_socket(world) as socket:
        await socket.send(connect_packet(device_id, token))
        await receive(socket, 4)
        intake.is_full = True
        for call in intake.on_full:
            call()
        await socket.send(publish_packet(device_id, b'{"temp": 1}'))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.3)
        intake.is_full = False
        for call in intake.on_room:
            call()
        assert await receive(socket, 4) == b"\x40\x02\x00\x01"


async def test_who_floods_with_pings_and_never_reads_is_not_read(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.app.state.mqtt_websocket_port)
    writer.write(
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    device_id, token = await world.device()
    hello = connect_packet(device_id, token)
    # A whole binary frame, with a mask that changes nothing.
    writer.write(b"\x82\xfe" + len(hello).to_bytes(2) + bytes(4) + hello)
    assert await reader.readexactly(6) == b"\x82\x04\x20\x02\x00\x00"
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's can
    [connection] = world.app.state.endpoint.connections
    pings = (b"\x89\xfd\0\0\0\0" + bytes(125)) * 1_000

    async def flood() -> None:
        while True:
            writer.write(pings)
            await writer.drain()

    flooding = asyncio.create_task(flood())
    await until(lambda: not connection._is_reading, "it is not read any more")
    assert connection._transport._below.get_write_buffer_size() < 1_000_000
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    writer.close()


class Stuck(asyncio.Transport):
    """A connection whose peer reads nothing."""

    is_closed = is_aborted = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_aborted = True


def stuck_socket(world: World) -> tuple[websocket.WebSocket, Stuck]:
    """A WebSocket whose handshake is over."""
    below = Stuck()
    socket = websocket.WebSocket(Connection(world.app.state.endpoint))
    socket.connection_made(below)
    socket.data_received(
        b"GET /mqtt HTTP/1.1\r\nHost: plant\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
    return socket, below


async def test_a_client_that_reads_nothing_more_does_not_hold_its_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was to be told stays unsent, so that the connection would not end by itself."""
    monkeypatch.setattr(websocket, "CLOSING_GRACE_S", 0.05)
    socket, below = stuck_socket(world)
    socket.data_received(b"\x81\x80\0\0\0\0")  # a text, which MQTT has none of
    assert below.is_closed
    await until(lambda: below.is_aborted, "cut off")
    socket.connection_lost(None)


async def test_a_frame_that_is_never_whole_is_not_gathered_without_end(world: World) -> None:
    """A frame may be as large as a packet; yet who has not said who he is may send little."""
    socket, below = stuck_socket(world)
    socket.data_received(b"\x82\xff" + (200_000).to_bytes(8) + bytes(4))
    sent = 0
    while not below.is_aborted and sent < 200_000:
        socket.data_received(bytes(1_000))
        sent += 1_000
    assert sent <= 66_000
    socket.connection_lost(None)
