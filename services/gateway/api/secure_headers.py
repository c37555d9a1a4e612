"""What every answer tells browsers, whoever made it."""

from collections.abc import Collection, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.addresses import Network, is_within
from libs.common.errors import AppError
from libs.common.http.problems import send_problem

_NOT_NEEDED = (
    b"accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), "
    b"magnetometer=(), microphone=(), midi=(), payment=(), usb=()"
)
# An answer of the API is data: nothing in it may run, load or be framed.
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", _NOT_NEEDED),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-permitted-cross-domain-policies", b"none"),
    (b"x-dns-prefetch-control", b"off"),
)
_UNLESS_SAID = (
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
)
_HTTPS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")


class Misdirected(AppError):
    """The request names a host that we are not."""

    status = 421
    title = "Misdirected request"
    slug = "misdirected-request"


class SecureHeaders:
    """Adds headers to answers, and refuses requests for other hosts.

    That the client speaks HTTPS is believed of a proxy of ours that says so, and of nobody else.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allowed_hosts: Collection[str] = (),
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._app = app
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        if self._trusted_proxies and _says_https(scope, self._trusted_proxies):
            scope["scheme"] = "https" if scope["type"] == "http" else "wss"
        is_https = scope["scheme"] in {"https", "wss"}

        async def send_secured(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = [h for h in message.get("headers", ()) if h[0] != b"server"]
                said = {name for name, _ in headers}
                headers += _ALWAYS
                headers += [header for header in _UNLESS_SAID if header[0] not in said]
                if is_https:
                    headers.append(_HTTPS)
                message = {**message, "headers": headers}
            await send(message)

        if self._allowed_hosts and not self._is_for_us(scope):
            await send_problem(scope, receive, send_secured, Misdirected("that is not our name"))
            return
        await self._app(scope, receive, send_secured)

    def _is_for_us(self, scope: Scope) -> bool:
        # Probes of the orchestrator come by address.
        if scope["path"].startswith("/health/"):
            return True
        for name, value in scope["headers"]:
            if name == b"host":
                host: str = value.decode("latin-1").lower()
                return host in self._allowed_hosts or host.rpartition(":")[0] in self._allowed_hosts
        return False


def _says_https(scope: Scope, trusted: Sequence[Network]) -> bool:
    """Whether a proxy of ours says that it was spoken to by HTTPS."""
    said = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
    if len(said) != 1 or not scope.get("client") or not is_within(scope["client"][0], trusted):
        return False
    # The right-most is what the nearest one saw.
    return bool(said[0].rpartition(b",")[2].strip().lower() in {b"https", b"wss"})
