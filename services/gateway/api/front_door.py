"""The door that everything comes through: who calls, how much, and which service it is for.

Raw ASGI. What belongs to a service is handed to it with a principal instead of the credential;
what is the gateway's own goes on to its routes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.addresses import Network, is_within
from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import HEADER
from libs.common.errors import AppError, Malformed, NotFound, TooManyRequests, Unauthenticated
from libs.common.http.doorway import ROUTE
from libs.common.http.problems import REQUEST_ID, Refused, send_problem
from libs.common.trace import current_traceparent
from services.gateway.adapters.limits import Limiter
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.api.deps import bearer_token
from services.gateway.domain.address import client_address
from services.gateway.domain.device_token import is_device_token, may_ask
from services.gateway.domain.limit import Limit, Standing
from services.gateway.domain.routes import API, OPEN, OWNERS, segment_of
from services.gateway.domain.secret import hash_secret
from services.gateway.usecases.callers import Callers

# Besides what concerns one connection alone (RFC 9110, section 7.6.1): credentials, which are
# exchanged here, and what only the gateway may say.
_NOT_PASSED = frozenset(
    {
        b"authorization",
        b"connection",
        b"cookie",
        b"expect",
        b"forwarded",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"traceparent",
        b"upgrade",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
_PRINCIPAL = HEADER.encode()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the callers may ask for."""

    user: Limit
    of_segment: Mapping[str, Limit]
    device: Limit
    anonymous: Limit
    live: Limit
    """Live connections that are opened, from one address."""


class FrontDoor:
    """Sends each request where it belongs."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        upstreams: Upstreams,
        callers: Callers,
        limiter: Limiter,
        limits: Limits,
        guesses: Guesses,
        trusted_proxies: Sequence[Network],
        metrics_networks: Sequence[Network],
    ) -> None:
        self._app = app
        self._upstreams = upstreams
        self._callers = callers
        self._limiter = limiter
        self._limits = limits
        self._guesses = guesses
        self._trusted_proxies = trusted_proxies
        self._metrics_networks = metrics_networks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let the gateway's own routes do so."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        try:
            if scope["type"] == "websocket":
                await self._count(self._limits.live, self._address(scope))
                await self._app(scope, receive, send)
                return
            segment = segment_of(scope["path"])
            if segment is not None and segment in OWNERS:
                await self._forward(segment, scope, receive, send)
            else:
                await self._serve(scope, receive, send)
        except LimitReached as error:
            await send_problem(scope, receive, _with_headers(send, error.standing), error)
        except AppError as error:
            await send_problem(scope, receive, send, error)
        except Refused as refused:
            await send_problem(scope, receive, send, refused.error)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the gateway's own routes answer."""
        path: str = scope["path"]
        if path == "/metrics" and not self._may_read_metrics(scope):
            raise NotFound("There is nothing at this path.")
        if not path.startswith(API):
            await self._app(scope, receive, send)
            return
        address = self._address(scope)
        standing = await self._count(self._limits.anonymous, address)
        scope.setdefault("state", {})["address"] = address
        await self._app(scope, receive, _with_headers(send, standing))

    async def _forward(self, segment: str, scope: Scope, receive: Receive, send: Send) -> None:
        service = OWNERS[segment]
        scope[ROUTE] = f"{API}{segment}"
        headers, credential = _read(scope["headers"])
        upstream = self._upstreams[service]
        try:
            if (scope["method"], scope["path"]) in OPEN:
                standing = await self._count(self._limits.anonymous, self._address(scope))
            elif is_device_token(token := bearer_token(credential)):
                if not may_ask(scope["method"], scope["path"]):
                    raise Unauthenticated(
                        "a device's token is good for telemetry and what is below /devices/me alone"
                    )
                token_hash, origin = hash_secret(token), self._address(scope)
                self._check_guess(token_hash, origin)
                standing = await self._count(self._limits.device, token_hash.hex())
                headers.append((b"authorization", f"Bearer {token}".encode()))
                send = self._heeding(send, token_hash, origin)
            else:
                caller = await self._callers.caller(token)
                limit = self._limits.of_segment.get(segment, self._limits.user)
                standing = await self._count(limit, str(caller.access.user_id))
                headers.append((_PRINCIPAL, caller.principal_token))
        except _WrongToken:
            raise
        except Unauthenticated:
            await self._count(self._limits.anonymous, self._address(scope))
            raise
        headers.append((b"x-request-id", scope[REQUEST_ID].encode()))
        traceparent = current_traceparent()
        if traceparent is not None:
            headers.append((b"traceparent", traceparent.encode()))
        inner = {**scope, "headers": headers}
        await upstream(inner, receive, _with_headers(send, standing))

    def _check_guess(self, token_hash: bytes, origin: str) -> None:
        """Refuse a device's token that ingest need not be asked about, or not yet."""
        now = time.monotonic()
        if self._guesses.is_refused(token_hash, now):
            raise _WrongToken("the token is not valid")
        wait_s = self._guesses.wait_s(token_hash, origin, now)
        if wait_s > 0:
            raise TooManyRequests(
                "too many tokens from this address were not valid", retry_after_s=wait_s
            )

    def _heeding(self, send: Send, token_hash: bytes, origin: str) -> Send:
        """Return a `send` that learns from ingest's answer what a device's token is worth."""

        async def send_and_learn(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == Unauthenticated.status:
                    self._guesses.failed(token_hash, origin, time.monotonic())
                elif message["status"] < 300:
                    self._guesses.passed(token_hash)
            await send(message)

        return send_and_learn

    async def _count(self, limit: Limit, key: str) -> Standing:
        standing = await self._limiter.hit(limit, key)
        if not standing.is_allowed:
            raise LimitReached(standing)
        return standing

    def _address(self, scope: Scope) -> str:
        peer = scope["client"][0] if scope.get("client") else "unknown"
        forwarded = [
            value.decode("latin-1")
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
        ]
        return client_address(peer, forwarded, self._trusted_proxies)

    def _may_read_metrics(self, scope: Scope) -> bool:
        """Whether the request comes directly, from a network that may; a proxy's is the world's."""
        peer = scope["client"][0] if scope.get("client") else "unknown"
        is_direct = all(
            name not in {b"x-forwarded-for", b"forwarded"} for name, _ in scope["headers"]
        )
        return is_direct and is_within(peer, self._metrics_networks)


class _WrongToken(Unauthenticated):
    """A device's token that was refused just now; it has been counted."""


class LimitReached(TooManyRequests):
    """More was asked for than the limit allows."""

    def __init__(self, standing: Standing) -> None:
        super().__init__(
            f"the limit of {standing.limit.per_minute} requests a minute is reached",
            retry_after_s=standing.reset_s,
        )
        self.standing = standing


def _read(
    given: Sequence[tuple[bytes, bytes]],
) -> tuple[list[tuple[bytes, bytes]], str | None]:
    """Return the headers that a service may see, and the credential. Raises Malformed."""
    headers = []
    credential: str | None = None
    for name, value in given:
        if name in _NOT_PASSED:
            if name == b"authorization":
                if credential is not None:
                    raise Malformed("there are two Authorization headers")
                credential = value.decode("latin-1")
        elif not name.startswith(b"x-iiot-"):
            headers.append((name, value))
    return headers, credential


def _with_headers(send: Send, standing: Standing) -> Send:
    """Return a `send` that also tells where the caller stands."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            told = {name for name, _ in message["headers"]}
            if b"ratelimit" not in told:
                message = {**message, "headers": [*message["headers"], *standing.headers()]}
        await send(message)

    return send_with_headers
