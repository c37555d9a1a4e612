"""Whether a browser's request comes from one of our own pages.

A cookie is sent by the browser whoever made the page; what the page is, the browser says in
`Origin`, or in `Sec-Fetch-Site`. Neither can be set by a script.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_from_own_page(origin: str | None, fetch_site: str | None, own: Collection[str]) -> bool:
    """Whether the page is one of those; a request that says nothing of its page is not."""
    if origin is not None:
        return origin.lower() in own
    return fetch_site == "same-origin"


def is_loopback(host: str) -> bool:
    """Whether a Host header names this very machine, to which browsers send Secure cookies by HTTP."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
