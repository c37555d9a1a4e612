"""What an API key looks like: `iiotk_<8>_<43><6>`.

The first eight characters are the key's handle: they stand in lists and logs. The 43 are 256 random
bits, so that a plain SHA-256 is enough to keep. The last six are a checksum over all before them:
a scanner that finds something of this shape knows whether it is a key, and a mistyped one is
refused without being looked up.
"""

import hashlib
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

PREFIX = "iiotk_"
"""So that a key found in a log or a repository is known for what it is."""
HANDLE_LENGTH = 8
CHECKSUM_LENGTH = 6

PATTERN = re.compile(r"iiotk_[0-9a-z]{8}_[A-Za-z0-9_-]{43}[0-9A-Za-z]{6}")
"""For scanners that look for secrets."""

_HANDLE = string.ascii_lowercase + string.digits
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret that was just made. `key` is shown once; the hash is what is kept."""

    key: str = field(repr=False)

    @property
    def key_hash(self) -> bytes:
        """What is kept of the key."""
        return hash_key(self.key)

    @property
    def handle(self) -> str:
        """What the key is called in lists and logs."""
        return self.key[: len(PREFIX) + HANDLE_LENGTH]


def new_handle() -> str:
    """Return the handle of a new key, which it keeps when it is rotated."""
    return PREFIX + "".join(secrets.choice(_HANDLE) for _ in range(HANDLE_LENGTH))


def new_secret(handle: str) -> NewSecret:
    """Return a fresh secret of the key with this handle."""
    body = f"{handle}_{secrets.token_urlsafe(32)}"
    return NewSecret(body + _checksum(body))


def is_api_key(token: str) -> bool:
    """Whether somebody shows an API key, be it good or not."""
    return token.startswith(PREFIX)


def is_well_formed(token: str) -> bool:
    """Whether it has a key's shape and its checksum; no other can be anybody's."""
    if PATTERN.fullmatch(token) is None:
        return False
    body, checksum = token[:-CHECKSUM_LENGTH], token[-CHECKSUM_LENGTH:]
    return _checksum(body) == checksum


def hash_key(key: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    """Return the CRC-32 of a key's other characters, in base 62."""
    number, digits = zlib.crc32(body.encode()), []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
