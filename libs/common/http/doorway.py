"""What happens around every request: its id and trace, the limit of its body, one log line, its metrics.

Raw ASGI, one layer: each further middleware would cost every request.
"""

import asyncio
import os
import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.middleware import body_limit
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from libs.common import log
from libs.common.db.acting import act_as, act_no_more
from libs.common.errors import AppError, FieldError, Invalid, NotFound, TooLarge
from libs.common.http.deprecation import deprecation_of
from libs.common.http.metrics import Metrics
from libs.common.http.problems import REQUEST_ID, Refused, internal_error, send_problem
from libs.common.http.strict_json import check_json
from libs.common.trace import enter_trace, leave_trace, new_traceparent, trace_id_of

ROUTE = "iiot.route"
"""The key of the ASGI scope under which a raw app may name the route for metrics and log."""

CLIENT_GONE = 499
"""The status under which a request is counted that the client did not wait for."""

_LOGGED_PATH = 512
"""Of a longer path the beginning is logged."""

_COUNTS = body_limit._BODY_LIMIT_RESPONDER_SCOPE_KEY
"""Under which Starlette looks for who counts the body already, and tells them a route's own limit.
Else it counts itself, and answers in plain text."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")

_log = log.logger(__name__)


class Doorway:
    """The outermost layer of a service's app.

    `templates` finds a route's path template by the identity of the route or endpoint.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        metrics: Metrics,
        max_body_bytes: int,
        templates: Mapping[int, str],
    ) -> None:
        self._app = app
        self._service = service
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on with an id, a trace and a log context of its own."""
        kind = scope["type"]
        if kind not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        request_id, traceparent, trace_id, length, is_json = _read_headers(scope)
        scope[REQUEST_ID] = request_id
        # A request may run inside another one's context (the edge composes services in process):
        # what is bound here is bound for this request alone, and the tenant is not inherited.
        bound = bind_contextvars(
            service=self._service, request_id=request_id, trace_id=trace_id, tenant=None
        )
        trace = enter_trace(traceparent)
        # Whoever calls is not yet known.
        acting = act_as(None)
        try:
            if kind == "http":
                body = _Body(scope, receive, self._max_body_bytes, length, is_json=is_json)
                scope[_COUNTS] = body
                await self._serve(scope, body.receive, send, request_id)
            else:
                await self._app(scope, receive, send)
        finally:
            act_no_more(acting)
            leave_trace(trace)
            reset_contextvars(**bound)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [h for h in message.get("headers", ()) if h[0] != b"x-request-id"]
                headers.append((b"x-request-id", request_id.encode()))
                ends = deprecation_of(scope.get("endpoint"))
                if ends is not None:
                    headers += ends.headers()
                message["headers"] = headers
            await send(message)

        try:
            refusal = _refusal(scope)
            if refusal is not None:
                await send_problem(scope, receive, send_with_id, refusal)
            else:
                await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            status = status or CLIENT_GONE
            raise
        except (
            Exception
        ):  # whatever a route raises: the client gets a problem, and the log the rest
            _log.exception("request broke", method=scope["method"], path=_shown(scope["path"]))
            if status:
                # The head is out: only a broken connection can tell the client now.
                raise
            await internal_error(request_id)(scope, receive, send_with_id)
        finally:
            self._note(scope, status or CLIENT_GONE, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, duration_s: float) -> None:
        route = self._route_of(scope)
        self._metrics.count_request(self._service, route, scope["method"], status, duration_s)
        if not route.startswith(("/health/", "/metrics")):
            _log.info(
                "request",
                method=scope["method"],
                path=_shown(scope["path"]),
                route=route,
                status=status,
                duration_ms=round(duration_s * 1000, 2),
            )

    def _route_of(self, scope: Scope) -> str:
        named: str | None = scope.get(ROUTE)
        if named is not None:
            return named
        route = scope.get("route") or scope.get("endpoint")
        return self._templates.get(id(route), "unmatched")


def _shown(path: str) -> str:
    return path if len(path) <= _LOGGED_PATH else path[:_LOGGED_PATH] + "…"


def _read_headers(scope: Scope) -> tuple[str, str, str, int | None, bool]:
    """Return request id, traceparent, trace id, Content-Length, and whether the body is called JSON."""
    request_id = traceparent = None
    length: int | None = None
    is_json = False
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            candidate = value.decode("latin-1")
            if _REQUEST_ID.match(candidate):
                request_id = candidate
        elif name == b"traceparent":
            traceparent = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() else None
        elif name == b"content-type":
            is_json = b"json" in value.lower()
    trace_id = trace_id_of(traceparent)
    if trace_id is None or traceparent is None:
        trace_id = os.urandom(16).hex()
        traceparent = new_traceparent(trace_id)
    return request_id or os.urandom(16).hex(), traceparent, trace_id, length, is_json


def _refusal(scope: Scope) -> AppError | None:
    """Return why an address cannot be served: PostgreSQL has no text with U+0000 in it."""
    if b"%00" in scope["query_string"]:
        query = scope["query_string"].decode("latin-1")
        names = [k for k, v in parse_qsl(query, keep_blank_values=True) if "\0" in k + v]
        errors = [FieldError(f"?{name}", "must not hold U+0000") for name in names]
        return Invalid("A query parameter holds U+0000.", errors=errors)
    if "\0" in scope["path"]:
        return NotFound("There is nothing at this path.")
    return None


class _Body:
    """A request's body as it comes in: counted, and checked at its end if a route reads it as JSON."""

    __slots__ = ("_chunks", "_is_json", "_length", "_receive", "_scope", "_size", "max_body_size")

    total_size = 0
    """What Starlette would refuse by itself at once: it never does."""

    def __init__(
        self, scope: Scope, receive: Receive, limit: int, length: int | None, *, is_json: bool
    ) -> None:
        self._scope = scope
        self._receive = receive
        self.max_body_size = limit
        """A route may allow more, or less, than its service does; it sets this."""
        self._length = length
        self._is_json = is_json
        self._size = 0
        self._chunks: list[bytes] = []

    async def receive(self) -> Message:
        """Return the next message. Raises Refused if the body is too large or not sound JSON."""
        route = self._scope.get("route")
        limit = self.max_body_size
        if self._length is not None and self._length > limit:
            raise _too_large(limit)
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self._size > limit:
            raise _too_large(limit)
        if self._is_json and getattr(route, "body_field", None) is not None:
            self._chunks.append(chunk)
            if not message.get("more_body", False):
                try:
                    check_json(b"".join(self._chunks))
                except AppError as error:
                    raise Refused(error) from None
        return message


def _too_large(limit: int) -> Refused:
    return Refused(TooLarge(f"The body is larger than {limit} bytes."))
