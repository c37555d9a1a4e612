"""Secrets that must be read again (a broker's password, a pre-shared key), sealed before they are kept.

AES-256-GCM under a key made from a setting. What a secret is about is sealed in with it, so that
one cannot be put in the place of another.
"""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.common.errors import Unavailable

_NONCE_BYTES = 12
SHORTEST_KEY = 16
"""Characters. The key is random, not a password: it is not stretched."""


class Unsealable(Exception):
    """What was kept was sealed with another key, or about something else."""


class Sealing:
    """Seals and opens the secrets of one purpose. Without a key it refuses to do either."""

    def __init__(self, key: str, purpose: str) -> None:
        if key and len(key) < SHORTEST_KEY:
            raise ValueError(f"a key to seal with has {SHORTEST_KEY} characters at least")
        self._aead: AESGCM | None = None
        if key:
            derived = HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(key.encode())
            self._aead = AESGCM(derived)

    def seal(self, secret: bytes, about: bytes) -> bytes:
        """Return the secret sealed. Raises Unavailable if there is no key."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, secret, about)

    def open(self, sealed: bytes, about: bytes) -> bytes:
        """Return the secret. Raises Unsealable if it is not ours, Unavailable if there is no key."""
        try:
            return self._cipher().decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
        except (InvalidTag, ValueError) as error:
            raise Unsealable("sealed with another key, or about something else") from error

    def _cipher(self) -> AESGCM:
        if self._aead is None:
            raise Unavailable("secrets cannot be kept: this installation has no key to seal them")
        return self._aead
