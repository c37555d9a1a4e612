"""aiomqtt, for brokers that may be no friends of ours: whatever such a broker does, we hold so much.

Its connection is made here, in the event loop: a broker that never ends its TLS handshake would
else hold a thread that others wait for, and a connection that was given up would come up later.
"""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from libs.common.errors import Unavailable

MOST_WAITING = 5_000
"""Messages read and not yet taken. Beyond that the broker is not read, so TCP holds it back."""
MOST_WAITING_BYTES = 8 * 1024 * 1024
MOST_UNWRITTEN = 20_000
"""Packets for a broker that does not read."""
CONNECT_S = 10.0
CHUNK = 65_536
FOR_EVER = 0xFFFFFFFF
"""A session expiry interval of MQTT 5."""


async def connect(
    address: str, port: int, tls: ssl.SSLContext | None, host: str, within_s: float = CONNECT_S
) -> socket.socket:
    """Connect to the very address that was judged; its certificate is the host's.

    Raises OSError, Unavailable if that takes too long.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    own = socket.socket(family, socket.SOCK_STREAM)
    own.setblocking(False)
    try:
        async with asyncio.timeout(within_s):
            await loop.sock_connect(own, (address, port))
            if tls is not None:
                own = tls.wrap_socket(own, server_hostname=host, do_handshake_on_connect=False)
                await _shake_hands(own)
    except TimeoutError as error:
        own.close()
        raise Unavailable(f"no connection within {within_s:.0f} s") from error
    except BaseException:
        own.close()
        raise
    return own


def kept_session(is_5: bool, most_unsettled: int) -> dict[str, Any]:
    """Return the settings of a client whose session the broker keeps until it comes back.

    `most_unsettled` messages may be unacknowledged; in 3.1.1 that is the broker's to decide.
    """
    if not is_5:
        return {"clean_session": False}
    properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = FOR_EVER
    properties.ReceiveMaximum = most_unsettled
    return {
        "protocol": aiomqtt.ProtocolVersion.V5,
        "clean_start": False,
        "properties": properties,
    }


async def _shake_hands(own: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = asyncio.Event()
        try:
            own.do_handshake()
        except ssl.SSLWantReadError:
            loop.add_reader(own.fileno(), ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(own.fileno())
        except ssl.SSLWantWriteError:
            loop.add_writer(own.fileno(), ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_writer(own.fileno())
        else:
            return


class MqttClient(aiomqtt.Client):
    """A client over a connection made before, of which every queue has a bound.

    Acknowledge each message by `acknowledge`. Of a message larger than `most_bytes`, topic and all,
    no more is kept than its beginning.
    """

    def __init__(self, own: socket.socket, most_bytes: int, **settings: Any) -> None:
        # What the host is called matters to nobody any more.
        super().__init__("broker", **settings)
        self._own = own
        self._most_bytes = most_bytes
        self._waiting_bytes = 0
        self._is_paused = False
        self._queue = _Queue(self)
        self.kept_s: int | None = None
        """How long the broker keeps the session when we are away, if it says that it is not for ever."""
        # aiomqtt 2 acknowledges on receipt, and paho looks names up, connects and reads by itself;
        # neither has a public way to be told otherwise.
        self._client.manual_ack_set(True)
        self._client._create_socket = lambda: own  # type: ignore[method-assign]
        self._client._sock_recv = self._receive  # type: ignore[method-assign, assignment]

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """Tell the broker that a message is safe."""
        if message.qos:
            self._client.ack(message.mid, message.qos)

    def cut(self) -> None:
        """End the connection, whatever state it is in. What was begun for it ends by that."""
        with contextlib.suppress(OSError):
            self._own.shutdown(socket.SHUT_RDWR)
        self._client._sock_close()
        self._own.close()

    def waiting(self, bytes_more: int) -> None:
        """Note that a message came to wait, or waits no more; stop or begin to read accordingly."""
        self._waiting_bytes += bytes_more
        count = self._queue.qsize()
        if not self._is_paused:
            if count >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES:
                self._is_paused = True
                if self._own.fileno() >= 0:
                    self._loop.remove_reader(self._own.fileno())
        elif count <= MOST_WAITING // 2 and self._waiting_bytes <= MOST_WAITING_BYTES // 2:
            self._is_paused = False
            if self._own.fileno() >= 0:
                self._loop.add_reader(self._own.fileno(), self._read)
                # TLS may hold what was read already, of which the loop would not tell.
                self._loop.call_soon(self._read)

    def _on_connect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        # What the broker did not send is no attribute at all.
        self.kept_s = getattr(properties, "SessionExpiryInterval", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        # Called in a thread.
        self._loop.call_soon_threadsafe(self._begin, sock.fileno())

    def _begin(self, fileno: int) -> None:
        if fileno == self._own.fileno() >= 0:  # not cut meanwhile
            self._loop.add_reader(fileno, self._read)
            self._misc_task = self._loop.create_task(self._misc_loop())

    def _read(self) -> None:
        try:
            while not self._is_paused:
                self._client.loop_read()
                if self._client._in_messages:
                    raise aiomqtt.MqttError("the broker sends with QoS 2, which nobody asked for")
                if len(self._client._out_packet) > MOST_UNWRITTEN:
                    raise aiomqtt.MqttError("the broker does not read")
                if not isinstance(self._own, ssl.SSLSocket) or not self._own.pending():
                    break
        except Exception as error:  # noqa: BLE001 - what a broker sends may be anything
            # Such as a topic that is none: whatever a broker sends, no more than its own bridge ends.
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def _receive(self, most: int) -> bytes:
        packet = self._client._in_packet["packet"]
        if len(packet) > self._most_bytes:
            del packet[self._most_bytes :]
        try:
            return self._own.recv(min(most, CHUNK))
        except ssl.SSLWantReadError as error:
            raise BlockingIOError from error


class _Queue(asyncio.Queue[aiomqtt.Message]):
    """Messages that wait; it tells its client of each that comes or goes."""

    def __init__(self, client: MqttClient) -> None:
        super().__init__()
        self._told = client

    def put_nowait(self, message: aiomqtt.Message) -> None:
        super().put_nowait(message)
        self._told.waiting(_size_of(message))

    def get_nowait(self) -> aiomqtt.Message:
        message = super().get_nowait()
        self._told.waiting(-_size_of(message))
        return message


def _size_of(message: aiomqtt.Message) -> int:
    assert isinstance(message.payload, bytes | bytearray)
    return len(message.payload)
