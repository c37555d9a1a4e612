"""The keys in hand: what signs, and what others verify with."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from libs.common.auth.principal import PrincipalSigner
from libs.common.clock import Clock
from services.gateway.domain.signing_key import SigningKey, signing_key, to_jwk
from services.gateway.store.keys import Keys

REREAD_S = 5.0
"""A key id that is not known is looked for at most this often, so that forged ids cost little."""


class Keyring:
    """The signing keys of the installation, as this process knows them. Also a `KeySource`."""

    def __init__(self, keys: Keys, clock: Clock, lifetime: timedelta) -> None:
        self._store = keys
        self._clock = clock
        self._lifetime = lifetime
        self._keys: Sequence[SigningKey] = ()
        self._public: dict[str, EllipticCurvePublicKey] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def keep(self) -> None:
        """Read the keys, and make or remove what is due."""
        self._take(await self._store.keep(lifetime=self._lifetime, now=self._clock.now()))

    def signing(self) -> SigningKey:
        """Return the key that signs now."""
        return signing_key(self._keys, self._clock.now())

    def signer(self) -> PrincipalSigner:
        """Return what signs principals now."""
        key = self.signing()
        return PrincipalSigner(key.private, key.kid)

    async def key(self, kid: str) -> EllipticCurvePublicKey | None:
        """Return the public key of that id, perhaps just made by another replica; None if none."""
        if kid not in self._public and time.monotonic() - self._read_at > REREAD_S:
            async with self._reading:
                if kid not in self._public and time.monotonic() - self._read_at > REREAD_S:
                    self._take(await self._store.all())
        return self._public.get(kid)

    @property
    def public(self) -> Mapping[str, EllipticCurvePublicKey]:
        """The public keys by id."""
        return self._public

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return what is published (RFC 7517)."""
        return {"keys": [to_jwk(key) for key in self._keys]}

    def _take(self, keys: Sequence[SigningKey]) -> None:
        self._keys = keys
        self._public = {key.kid: key.private.public_key() for key in keys}
        self._read_at = time.monotonic()
