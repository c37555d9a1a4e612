"""A device's token: what it proves itself with.

256 random bits, so that a plain SHA-256 at rest is safe: ten thousand devices that reconnect at
once cost nothing. (A password that a human chose would need argon2.)
"""

import hashlib
import re
import secrets

PREFIX = "iiotd_"
"""So that a token found in a log or a repository is known for what it is."""

_SHAPE = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


def new_token() -> str:
    """Return a fresh token."""
    return PREFIX + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether a text has the shape of a device's token."""
    return _SHAPE.fullmatch(text) is not None


def hash_token(token: str) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).digest()
