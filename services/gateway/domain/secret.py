"""The random secrets the gateway hands out: refresh tokens, and tickets for live connections.

256 random bits, so that a plain SHA-256 is enough to keep of them.
"""

import hashlib
import secrets

REFRESH_PREFIX = "iiotr_"
"""So that a token found in a log or a repository is known for what it is."""
TICKET_PREFIX = "iiotw_"


def new_refresh_token() -> str:
    """Return a fresh refresh token."""
    return REFRESH_PREFIX + secrets.token_urlsafe(32)


def new_ticket() -> str:
    """Return a fresh ticket. Its characters may stand in a WebSocket subprotocol."""
    return TICKET_PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()
