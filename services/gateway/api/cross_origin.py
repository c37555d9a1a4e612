"""What scripts of other sites may see (CORS, as the Fetch standard has it).

Tokens travel in `Authorization`, which a script must hold itself; cookies are never shared with
another site, so that `Access-Control-Allow-Credentials` is never said.
"""

from starlette.types import Message, Scope, Send

from libs.common.errors import Forbidden
from services.gateway.domain.routes import API
from services.gateway.usecases.origins import Origins

TENANT = "iiot.tenant"
"""The key of the ASGI scope under which the front door notes whose request it is, once that is known."""

_ORIGIN = b"origin"
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADERS = b"authorization, content-type, idempotency-key, if-match, if-none-match, x-api-key, x-request-id"
_SHOWN = b"etag, location, ratelimit, ratelimit-policy, retry-after, x-request-id"
_KEPT_S = b"600"
"""How long a browser may believe a preflight: a site that is struck off stays so long at most; what
it asks for it is not shown any more."""


def origin_of(scope: Scope) -> str | None:
    """Return the site whose script asks for the API; None if no browser says so."""
    for name, value in scope["headers"]:
        if name == _ORIGIN:
            return str(value.decode("latin-1")) if scope["path"].startswith(API) else None
    return None


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks what a script may ask."""
    return scope["method"] == "OPTIONS" and any(
        name == b"access-control-request-method" for name, _ in scope["headers"]
    )


async def answer_preflight(origin: str, origins: Origins, send: Send) -> None:
    """Say what a site's scripts may ask. Raises Forbidden for a site of nobody's.

    A preflight shows no credential, so that any tenant's site passes; who may see the answer is
    decided when the request itself comes.
    """
    if not origins.may_ask(origin, None):
        raise Forbidden("this site's scripts may not use the API")
    # Which site it is for, `showing` adds.
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _HEADERS),
        (b"access-control-max-age", _KEPT_S),
        (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def showing(send: Send, scope: Scope, origin: str, origins: Origins) -> Send:
    """Return a `send` that lets a site's script see the answer, if it is one of the tenant's."""

    async def send_shown(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"vary", b"Origin")]
            if origins.may_ask(origin, scope.get(TENANT)):
                headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
                headers.append((b"access-control-expose-headers", _SHOWN))
            message = {**message, "headers": headers}
        await send(message)

    return send_shown
