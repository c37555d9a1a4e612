"""Origins of other sites, whose scripts may use the API in the name of a tenant's users."""

from urllib.parse import urlsplit

from libs.common.errors import invalid

LONGEST = 255
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_USUAL_PORTS = {"https": 443, "http": 80}


def parse_origin(text: str, pointer: str) -> str:
    """Return an origin as browsers spell it: scheme, host, and the port if it is not the usual one.

    Raises Invalid for what is none, and for one that anybody on the way could be: it must be https,
    or this very machine. `*` and `null` are not to be had.
    """
    parts = urlsplit(text.strip())
    try:
        port = parts.port
    except ValueError as error:
        raise invalid(pointer, "has a port that is none") from error
    host = parts.hostname or ""
    if (
        parts.scheme not in _USUAL_PORTS
        or not host
        or not host.isascii()
        or any(mark in host for mark in "*%_ ")
        or parts.username is not None
        or parts.password is not None
        or parts.path not in {"", "/"}
        or parts.query
        or parts.fragment
        or len(text) > LONGEST
    ):
        raise invalid(pointer, "must be a scheme and a host, such as https://portal.example")
    shown = f"[{host}]" if ":" in host else host
    if parts.scheme == "http" and shown not in _LOOPBACK:
        raise invalid(pointer, "must begin with https://")
    return (
        f"{parts.scheme}://{shown}"
        if port in {None, _USUAL_PORTS[parts.scheme]}
        else f"{parts.scheme}://{shown}:{port}"
    )
