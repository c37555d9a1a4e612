"""What browsers need besides: the refresh token in a cookie, and that no other site uses it.

Everything else is asked for with an access token in `Authorization`, which no browser sends by
itself; the cookie opens nothing but /auth/refresh and /auth/logout.
"""

from collections.abc import Collection
from datetime import timedelta

from fastapi import Request, Response

from libs.common.errors import Conflict, Forbidden, Invalid, Unauthenticated
from services.gateway.domain.own_page import SAFE_METHODS, is_from_own_page, is_loopback
from services.gateway.domain.passkey import RelyingParty, origin_of, relying_party

REFRESH_COOKIE = "__Host-iiot_refresh"
"""`__Host-`: browsers take it over HTTPS alone, for this host alone, for all paths."""


async def from_own_page(request: Request) -> None:
    """Let a request pass that changes something and brings our cookie, if our own page sent it."""
    if request.method not in SAFE_METHODS and REFRESH_COOKIE in request.cookies:
        check_own_page(request)


def check_own_page(request: Request) -> None:
    """Raise Forbidden unless the request comes from a page of ours, or of an origin that is allowed."""
    if not is_from_own_page(
        request.headers.get("origin"), request.headers.get("sec-fetch-site"), _own_origins(request)
    ):
        raise Forbidden("this may be asked by our own pages alone: send their Origin")


def check_cookie_possible(request: Request) -> None:
    """Raise Forbidden for a page that is not ours, Invalid where a browser would take no cookie."""
    check_own_page(request)
    check_https(request)


def check_https(request: Request) -> None:
    """Raise Invalid where a browser would take no cookie."""
    if not _is_https(request) and not is_loopback(request.headers.get("host", "")):
        raise Invalid("the refresh token can be kept in a cookie over https alone: use https")


def own_url(request: Request) -> str:
    """Return the address that people use, without a slash at its end.

    It is told to others, who send browsers back to it: a Host header that anybody may write does not
    count, but for this very machine. Raises Conflict if it is not known.
    """
    public_url: str = request.app.state.public_url
    host = request.headers.get("host", "")
    if public_url:
        return public_url.rstrip("/")
    if is_loopback(host):
        return f"http://{host}"
    raise Conflict("this installation does not know its own address: set GATEWAY_PUBLIC_URL")


def put_cookie(response: Response, refresh_token: str, lasts: timedelta) -> None:
    """Let the browser keep a refresh token where no script reads it."""
    response.set_cookie(
        REFRESH_COOKIE,
        refresh_token,
        max_age=int(lasts.total_seconds()),
        path="/",
        secure=True,
        httponly=True,
        samesite="strict",
    )


def refresh_cookie(request: Request) -> str | None:
    """Return the refresh token that the browser keeps."""
    return request.cookies.get(REFRESH_COOKIE)


def clear_browser(response: Response) -> None:
    """Let the browser forget the cookie, and what the page has kept."""
    response.delete_cookie(REFRESH_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    response.headers["clear-site-data"] = '"cache", "storage"'


def site_of(request: Request) -> RelyingParty:
    """Return the site that passkeys are bound to. Raises Conflict if there is none."""
    state = request.app.state
    return relying_party(state.public_url, state.allowed_origins, request.headers.get("origin"))


def required_token(token: str | None) -> str:
    """Return the refresh token that was given. Raises Unauthenticated if none was."""
    if token is None:
        raise Unauthenticated("no refresh token was given")
    return token


def _own_origins(request: Request) -> Collection[str]:
    state = request.app.state
    host = request.headers.get("host", "").lower()
    own = {f"{'https' if _is_https(request) else 'http'}://{host}", *state.allowed_origins}
    return own | ({origin_of(state.public_url)} if state.public_url else set())


def _is_https(request: Request) -> bool:
    """Whether the client uses TLS: with us, or with what stands before our public address."""
    if request.scope["scheme"] == "https":
        return True
    public = origin_of(request.app.state.public_url)
    return public == f"https://{request.headers.get('host', '').lower()}"
