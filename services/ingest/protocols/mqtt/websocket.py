"""MQTT over WebSocket (MQTT 5, chapter 6): for browsers, and where nothing but HTTP passes a firewall.

To a `Connection` this is a transport like any other: MQTT's bytes travel in binary frames, cut as the
client likes. Whatever it holds back or pushes back reaches TCP: a connection that is not read is not
read here either.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any, cast

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from services.ingest.protocols.mqtt.endpoint import CLOSING_GRACE_S, Connection

PATH = "/mqtt"
SUBPROTOCOL = Subprotocol("mqtt")
MOST_EARLY = 65_536
"""Bytes taken before the CONNECT is there, all in all."""
SMALLEST_LIMIT = 65_536
"""Bytes of a frame that are always taken: a client may send many small packets in one."""

_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # the library tells of every connection that comes and goes


class WebSocket(asyncio.Protocol, asyncio.Transport):
    """One client's WebSocket: a protocol to its TCP or TLS connection, a transport to MQTT.

    A stranger from its first byte on: until the handshake is over, and MQTT's own after it, it counts
    as one and has as long as any other.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._below: asyncio.Transport | None = None
        self._websocket = ServerProtocol(
            subprotocols=[SUBPROTOCOL],
            max_size=max(SMALLEST_LIMIT, connection.largest_packet),
            logger=_log,
        )
        self._is_closing = False
        self._early = 0

    # --- to TCP, or TLS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._connection.connection_made(self)

    def data_received(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        pieces: list[bytes] = []
        for event in self._websocket.events_received():
            if isinstance(event, Request):
                self._answer(event)
            elif isinstance(event, Frame):
                self._take(event, pieces)
        if pieces and not self._is_closing:
            # Before any goodbye is answered: a DISCONNECT may have come with it.
            self._connection.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._flush()
        if not self._connection.is_introduced:
            # Neither HTTP's request nor a frame is bounded so well: the library takes either whole.
            self._early += len(data)
            if self._early > MOST_EARLY:
                self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    # --- to MQTT

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes in a frame of their own. Nothing before the handshake, nothing after the end."""
        if not self._is_closing and self._websocket.state is State.OPEN:
            self._websocket.send_binary(data)
            self._flush()

    def close(self) -> None:
        """Say goodbye, and close when the client has too; whoever calls sees to one that never does."""
        if self._is_closing:
            return
        self._is_closing = True
        assert self._below is not None
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(CloseCode.NORMAL_CLOSURE)
            self._flush()
            self._below.resume_reading()
        else:
            self._below.close()

    def abort(self) -> None:
        self._is_closing = True
        if self._below is not None:
            self._below.abort()

    def is_closing(self) -> bool:
        return self._is_closing or self._below is None or self._below.is_closing()

    def pause_reading(self) -> None:
        if self._below is not None:
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if self._below is not None:
            self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the connection below knows."""
        return default if self._below is None else self._below.get_extra_info(name, default)

    # --- the handshake and the frames

    def _answer(self, request: Request) -> None:
        if request.path.partition("?")[0] != PATH:
            response = self._websocket.reject(
                HTTPStatus.NOT_FOUND, f"MQTT over WebSocket is at {PATH}.\n"
            )
        else:
            # Any origin: a page has nothing of its reader's here that it could use, no cookie and no
            # address; a device shows its token in its CONNECT.
            response = self._websocket.accept(request)
        self._websocket.send_response(response)

    def _take(self, frame: Frame, pieces: list[bytes]) -> None:
        if frame.opcode is Opcode.TEXT:
            # [MQTT-6.0.0-1]
            self._websocket.fail(CloseCode.UNSUPPORTED_DATA, "MQTT travels in binary frames")
        elif frame.opcode in (Opcode.BINARY, Opcode.CONT) and frame.data:
            pieces.append(bytes(frame.data))

    def _flush(self) -> None:
        assert self._below is not None
        for data in self._websocket.data_to_send():
            if data != SEND_EOF:
                self._below.write(data)
            else:
                # Either side has said its last word: the server is the one to close.
                self._is_closing = True
                self._below.close()
                # A client that no longer reads must not keep the socket open.
                asyncio.get_running_loop().call_later(CLOSING_GRACE_S, self._below.abort)
