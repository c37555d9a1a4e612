"""The door that everything comes through: who calls, how much, and which service it is for.

Raw ASGI. What belongs to a service is handed to it with a principal instead of the credential;
what is the gateway's own goes on to its routes.
"""

import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.addresses import Network, is_within
from libs.common.auth.api_key import is_api_key
from libs.common.auth.guesses import Guesses
from libs.common.auth.permission import CLIENT_ADDRESS, USER_AGENT
from libs.common.auth.principal import HEADER, Principal
from libs.common.db.acting import Acting, act_as
from libs.common.errors import (
    AppError,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    UnsupportedMedia,
)
from libs.common.events.audit import NOBODY, AuditActor
from libs.common.http.doorway import ROUTE
from libs.common.http.problems import REQUEST_ID, Refused, send_problem
from libs.common.trace import current_traceparent
from services.gateway.adapters.limits import Limiter
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.api.cross_origin import (
    TENANT,
    answer_preflight,
    is_preflight,
    origin_of,
    showing,
)
from services.gateway.api.deps import bearer_token, credential
from services.gateway.domain.address import client_address
from services.gateway.domain.device_token import is_device_token, may_ask
from services.gateway.domain.limit import Standing, told
from services.gateway.domain.policy import Asking, CallerKind
from services.gateway.domain.routes import (
    API,
    OPEN,
    OURSELVES,
    owner_of,
    segment_of,
)
from services.gateway.domain.secret import hash_secret
from services.gateway.usecases.api_keys import ApiKeys, WrongAddress
from services.gateway.usecases.callers import Callers, Vouched
from services.gateway.usecases.origins import Origins
from services.gateway.usecases.rate_limits import RateLimits

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
        b"x-api-key",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-real-ip",
        b"x-request-id",
    }
)
UNPACKING = "telemetry"
"""The one part of the API that takes packed bodies, and unpacks them within bounds."""
_PRINCIPAL = HEADER.encode()
_CLIENT_ADDRESS = CLIENT_ADDRESS.encode()


class FrontDoor:
    """Sends each request where it belongs."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        upstreams: Upstreams,
        callers: Callers,
        api_keys: ApiKeys,
        limiter: Limiter,
        limits: RateLimits,
        origins: Origins,
        guesses: Guesses,
        trusted_proxies: Sequence[Network],
        metrics_networks: Sequence[Network],
        on_admitted: Sequence[Callable[[Principal], Awaitable[None]]] = (),
    ) -> None:
        """`on_admitted` hears of each request of a known tenant, once, when it is within its limits
        and about to be answered: who counts what a tenant asks for does so there. It may raise an
        AppError, which is the answer then.
        """
        self._app = app
        self._upstreams = upstreams
        self._callers = callers
        self._api_keys = api_keys
        self._limiter = limiter
        self._limits = limits
        self._origins = origins
        self._guesses = guesses
        self._trusted_proxies = trusted_proxies
        self._metrics_networks = metrics_networks
        self._on_admitted = tuple(on_admitted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or let the gateway's own routes do so."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        origin = None if scope["type"] == "websocket" else origin_of(scope)
        if origin is not None:
            send = showing(send, scope, origin, self._origins)
        try:
            if scope["type"] == "websocket":
                address = self._address(scope)
                await self._count(_stranger(scope, address))
                scope.setdefault("state", {})["address"] = address
                await self._app(scope, receive, send)
                return
            if origin is not None and is_preflight(scope):
                await self._count(_stranger(scope, self._address(scope)))
                await answer_preflight(origin, self._origins, send)
                return
            segment = segment_of(scope["path"])
            owner = owner_of(segment, scope["path"])
            if segment is not None and owner is not None:
                await self._forward(segment, owner, scope, receive, send)
            else:
                await self._serve(scope, receive, send)
        except LimitReached as error:
            await send_problem(scope, receive, _with_headers(send, error.standings), error)
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
        standings = await self._count(_stranger(scope, address))
        scope.setdefault("state", {})["address"] = address
        await self._note_tenant(scope)
        # Who it is their credential says, if they show one; the doorway forgets it.
        act_as(Acting(_somebody(scope, address)))
        await self._app(scope, receive, _with_headers(send, standings))

    async def _forward(
        self, segment: str, service: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Hand the request to the service that owns it, which may be the gateway itself."""
        scope[ROUTE] = f"{API}{segment}"
        headers, shown = _read(scope["headers"])
        if segment != UNPACKING:
            _check_encoding(headers)
        upstream = self._app if service == OURSELVES else self._upstreams[service]
        address = self._address(scope)
        try:
            if (scope["method"], scope["path"]) in OPEN:
                standings = await self._count(_stranger(scope, address))
            elif is_device_token(token := bearer_token(shown)):
                if not may_ask(scope["method"], scope["path"]):
                    raise Unauthenticated(
                        "a device's token is good for telemetry and what is below /devices/me alone"
                    )
                token_hash = hash_secret(token)
                self._check_guess(token_hash, address)
                standings = await self._count(_device(scope, address, token_hash))
                headers.append((b"authorization", f"Bearer {token}".encode()))
                send = self._heeding(send, token_hash, address)
            else:
                caller: Vouched = (
                    await self._api_keys.caller(token, address)
                    if is_api_key(token)
                    else await self._callers.caller(token)
                )
                scope[TENANT] = caller.principal.tenant_id
                standings = await self._count(_known(scope, address, caller))
                for tell in self._on_admitted:
                    await tell(caller.principal)
                headers.append((_PRINCIPAL, caller.principal_token))
        except _WrongToken:
            raise
        except (Unauthenticated, WrongAddress):
            await self._count(_stranger(scope, address))
            raise
        headers.append((b"x-request-id", scope[REQUEST_ID].encode()))
        headers.append((_CLIENT_ADDRESS, address.encode("latin-1")))
        traceparent = current_traceparent()
        if traceparent is not None:
            headers.append((b"traceparent", traceparent.encode()))
        inner = {**scope, "headers": headers}
        await upstream(inner, receive, _with_headers(send, standings))

    async def _note_tenant(self, scope: Scope) -> None:
        """Note whose request one of the gateway's own is, if a site of some tenant asks."""
        if origin_of(scope) is None:
            return
        with contextlib.suppress(AppError):
            token = bearer_token(_read(scope["headers"])[1])
            scope[TENANT] = (await self._callers.caller(token)).principal.tenant_id

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

    async def _count(self, asking: Asking) -> list[Standing]:
        """Count a request against what limits it. Raises LimitReached."""
        standings = []
        for limit in self._limits.limits(asking):
            standing = await self._limiter.hit(limit, asking.key)
            standings.append(standing)
            if not standing.is_allowed:
                raise LimitReached(standings)
        return standings

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


def _somebody(scope: Scope, address: str) -> AuditActor:
    """Return where a request comes from, of somebody not known yet."""
    user_agent = next((value for name, value in scope["headers"] if name == b"user-agent"), None)
    return AuditActor(
        kind=NOBODY.kind,
        request_id=scope[REQUEST_ID],
        address=address,
        user_agent=None if user_agent is None else user_agent.decode("latin-1")[:USER_AGENT],
    )


class _WrongToken(Unauthenticated):
    """A device's token that was refused just now; it has been counted."""


class LimitReached(TooManyRequests):
    """More was asked for than the limit allows; the last of the standings says which."""

    def __init__(self, standings: Sequence[Standing]) -> None:
        refusing = standings[-1]
        super().__init__(
            f"the limit of {refusing.limit} is reached", retry_after_s=refusing.reset_s
        )
        self.standings = standings


def _stranger(scope: Scope, address: str) -> Asking:
    method = scope.get("method", "GET")  # a WebSocket's handshake has none
    return Asking(CallerKind.ANONYMOUS, address, method, scope["path"], address)


def _device(scope: Scope, address: str, token_hash: bytes) -> Asking:
    key = token_hash.hex()
    return Asking(CallerKind.DEVICE, key, scope["method"], scope["path"], address)


def _known(scope: Scope, address: str, caller: Vouched) -> Asking:
    principal = caller.principal
    return Asking(
        CallerKind(principal.kind),
        f"{principal.kind}:{principal.subject}",
        scope["method"],
        scope["path"],
        address,
        principal.tenant_id,
        principal.subject,
        caller.roles,
        caller.plan,
    )


def _read(
    given: Sequence[tuple[bytes, bytes]],
) -> tuple[list[tuple[bytes, bytes]], str | None]:
    """Return the headers that a service may see, and the credential. Raises Malformed."""
    headers = []
    authorization: list[str] = []
    api_key: list[str] = []
    for name, value in given:
        if name in _NOT_PASSED:
            if name == b"authorization":
                authorization.append(value.decode("latin-1"))
            elif name == b"x-api-key":
                api_key.append(value.decode("latin-1"))
        elif not name.startswith(b"x-iiot-"):
            headers.append((name, value))
    return headers, credential(authorization, api_key)


def _check_encoding(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise UnsupportedMedia for a body that would have to be unpacked first."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() != b"identity":
            raise UnsupportedMedia("a body is sent as it is, without a Content-Encoding")


def _with_headers(send: Send, standings: Sequence[Standing]) -> Send:
    """Return a `send` that also tells where the caller stands."""

    async def send_with_headers(message: Message) -> None:
        # The gateway's own routes may have told of a limit of theirs.
        if message["type"] == "http.response.start" and not any(
            name == b"ratelimit" for name, _ in message["headers"]
        ):
            message = {**message, "headers": [*message["headers"], *told(standings)]}
        await send(message)

    return send_with_headers
