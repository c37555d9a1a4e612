"""The HTTP server of every process: uvicorn, within bounds.

By itself uvicorn takes a head of any length, waits for the rest of a request for ever, and for
whoever does not read the answer. Whoever can reach the port could so fill its memory and its sockets.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from enum import Enum
from http import HTTPStatus
from typing import Any, Literal

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from libs.common import log
from libs.common.addresses import is_within, origin_of
from libs.common.http.bounds import Bounds, within_open_files
from libs.common.http.problems import MEDIA_TYPE

LONGEST_FRAME = 64 * 1024
"""Bytes of a WebSocket's message from a client; a longer one closes it with 1009."""
SHARE = 0.25
"""How much of what the process may open is for HTTP."""

_log = log.logger(__name__)


class ServerConfig(uvicorn.Config):
    """How uvicorn is run, with what its connections share."""

    def __init__(
        self,
        app: ASGIApp,
        bounds: Bounds,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        lifespan: Literal["on", "off"] = "on",
        drain_s: int,
    ) -> None:
        super().__init__(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=Connection,
            ws_max_size=LONGEST_FRAME,
            # A compressed frame is small until it is unpacked.
            ws_per_message_deflate=False,
            lifespan=lifespan,
            log_config=None,
            access_log=False,
            server_header=False,
            # Who is a proxy of ours, the gateway alone knows; uvicorn would believe this machine.
            proxy_headers=False,
            timeout_graceful_shutdown=drain_s,
        )
        self.bounds = bounds
        self.most = within_open_files(bounds.connections, SHARE)
        if self.most < bounds.connections:
            _log.warning(
                "the limit of open files allows fewer connections",
                wanted=bounds.connections,
                allowed=self.most,
            )
        self.held: Counter[str] = Counter()
        """Connections by origin."""
        self.is_draining = False
        """Whether it ends: each answer is the last of its connection."""


class Server(uvicorn.Server):
    """Serves until it is told to end; then it says so, and finishes what has begun.

    `on_drain` is called at once: from then on the service is not ready. For `notice_s` more it takes
    requests as ever, each the last of its connection, so that balancers notice and nobody who was
    sent here meets a closed door. Only then it stops to listen.
    """

    config: ServerConfig

    def __init__(
        self,
        config: ServerConfig,
        *,
        notice_s: float = 0.0,
        on_drain: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._notice_s = notice_s
        self._on_drain = on_drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, as the class says."""
        self._on_drain()
        self.config.is_draining = True
        until = asyncio.get_running_loop().time() + self._notice_s
        while asyncio.get_running_loop().time() < until and not self.force_exit:  # noqa: ASYNC110 - a flag of uvicorn's
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class _Awaited(Enum):
    """What of a request is to come next."""

    REQUEST = "nothing of it is here"
    HEAD = "its head has begun"
    BODY = "its head is here"


class Connection(HttpToolsProtocol):
    """A client's connection, with a deadline for whatever it owes us."""

    config: ServerConfig

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds = self.config.bounds
        self._origin: str | None = None
        self._awaited = _Awaited.REQUEST
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body_bytes = 0
        self._body_began = 0.0
        self._fault_found = "This is not HTTP."
        self._deadline: asyncio.TimerHandle | None = None
        self._reader_deadline: asyncio.TimerHandle | None = None

    # --- the connection

    def connection_made(  # type: ignore[override]  # as in uvicorn: uvloop's transports are no subclass
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        if not self._is_admitted():
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections.")
            return
        self._set_deadline(self._bounds.head_within_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        # From here on another protocol has the connection, and the live connections are counted.
        self._leave()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._awaited is _Awaited.HEAD:
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > self._bounds.head_bytes:
                self._refuse_head()
                return
        if self._awaited is _Awaited.REQUEST and self._is_answering():
            self._clear_deadline()
        elif self._deadline is None:
            is_body = self._awaited is _Awaited.BODY
            self._set_deadline(
                self._bounds.body_within_s if is_body else self._bounds.head_within_s
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_deadline = self.loop.call_later(
            self._bounds.answer_within_s, self.transport.abort
        )

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
            self._reader_deadline = None

    # --- the request, as it is parsed

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaited = _Awaited.HEAD
        self._head_bytes = self._unparsed_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._awaited is not _Awaited.HEAD:
            return  # a trailer: nobody reads it, and the head that the app has must stay as it is
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        reason = self._fault()
        if reason is not None:
            # The parser stops, and `send_400_response` is called.
            self._fault_found = reason
            raise ValueError(reason)
        self._awaited = _Awaited.BODY
        self._body_bytes = 0
        self._body_began = self.loop.time()
        self._clear_deadline()
        super().on_headers_complete()
        if self.config.is_draining and self._is_answering():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaited = _Awaited.REQUEST
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed."""
        if self._head_bytes > self._bounds.head_bytes:
            self._refuse_head()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, self._fault_found)

    def _fault(self) -> str | None:
        """Return why a head cannot be what it seems; who stands before us might read it otherwise.

        (Two lengths, or a length beside chunks, the parser refuses itself.)
        """
        hosts = lengths = codings = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths += 1
            elif name == b"transfer-encoding":
                # Nothing else is read here, and another reader might not read it as nothing.
                codings += 1 if value.strip().lower() == b"chunked" else 2
        version = self.parser.get_http_version()
        if hosts > 1 or (not hosts and version == "1.1"):
            return "A request names its host, once."
        if codings > 1 or (codings and (lengths or version != "1.1")):
            return "How long the body is, is said in two ways."
        if self.url[:1] != b"/" and self.url != b"*":
            return "This is no proxy: a request names a path."
        return None

    # --- bounds

    def _is_admitted(self) -> bool:
        """Whether there is room for the connection, which then counts."""
        if len(self.connections) > self.config.most:
            return False
        host = self.client[0] if self.client else ""
        per_address = self._bounds.connections_per_address
        if per_address is None or is_within(host, self._bounds.proxies):
            return True
        try:
            origin = origin_of(host)
        except ValueError:
            return True  # no address: a socket in the file system
        if self.config.held[origin] >= per_address:
            return False
        self.config.held[origin] += 1
        self._origin = origin
        return True

    def _leave(self) -> None:
        self._clear_deadline()
        if self._reader_deadline is not None:
            self._reader_deadline.cancel()
        if self._origin is not None:
            self.config.held[self._origin] -= 1
            if not self.config.held[self._origin]:
                del self.config.held[self._origin]
            self._origin = None

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._bounds.head_bytes:
            # The parser stops, and `send_400_response` is called.
            raise ValueError("the head is too long")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]  # uvicorn says that it is always there

    def _set_deadline(self, in_s: float) -> None:
        self._deadline = self.loop.call_later(in_s, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._deadline = None
        bounds = self._bounds
        if self.transport.is_closing():
            return
        if self._awaited is _Awaited.BODY:
            if self.flow.read_paused:
                # The client waits for us.
                self._body_began = self.loop.time()
            allowed_s = bounds.body_within_s + self._body_bytes / bounds.body_rate
            left_s = self._body_began + allowed_s - self.loop.time()
            if left_s > 0:
                self._set_deadline(left_s)
            else:
                self._refuse(
                    HTTPStatus.REQUEST_TIMEOUT, "The body of the request took too long to come."
                )
        elif self._is_answering():
            self._set_deadline(bounds.head_within_s)
        elif self._awaited is _Awaited.HEAD:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request took too long to come.")
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"The head of a request may have {self._bounds.head_bytes} bytes.",
        )

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Say why, and close the connection; in the midst of an answer just close it."""
        self._clear_deadline()
        if self._is_answering():
            if self._awaited is not _Awaited.BODY or self.pipeline or self.cycle.response_started:
                self.transport.close()
                return
            # It is this request's body. The app is told that the client is gone, and whatever it
            # says to that is said to nobody.
            self.cycle.disconnected = True
        self._say(status, detail)

    def _say(self, status: HTTPStatus, detail: str) -> None:
        """Answer in the place of the app, and close the connection."""
        body = msgspec.json.encode(
            {
                "type": f"urn:iiot:problem:{status.phrase.lower().replace(' ', '-')}",
                "title": status.phrase,
                "status": status.value,
                "detail": detail,
                "errors": [],
                "request_id": None,
            }
        )
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
