"""What every answer tells browsers, whoever made it."""

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.errors import AppError
from libs.common.http.problems import send_problem

# An answer of the API is data: nothing in it may run, load or be framed.
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
_UNLESS_SAID = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_HTTPS = (b"strict-transport-security", b"max-age=31536000")


class Misdirected(AppError):
    """The request names a host that we are not."""

    status = 421
    title = "Misdirected request"
    slug = "misdirected-request"


class SecureHeaders:
    """Adds headers to answers, and refuses requests for other hosts."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str] = ()) -> None:
        self._app = app
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
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
