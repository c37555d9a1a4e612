"""The gateway's public keys, fetched from where it publishes them."""

import asyncio
import time

import httpx2
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from libs.common.errors import Unavailable

log = structlog.get_logger(__name__)

REFETCH_S = 5.0
"""A key id that is not known is asked for at most this often, so that forged ids cost little."""


class JwksKeys:
    """Public keys by id from a JWKS document (RFC 7517), kept until an unknown id is asked for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._fetched_at = float("-inf")
        self._is_up_to_date = False
        self._fetching = asyncio.Lock()

    async def key(self, kid: str) -> EllipticCurvePublicKey | None:
        """Return the key of that id, or None if the gateway has none such.

        Raises Unavailable if it is not known and the gateway could not be asked.
        """
        if kid not in self._keys:
            async with self._fetching:
                if kid not in self._keys and time.monotonic() - self._fetched_at > REFETCH_S:
                    await self._fetch()
        key = self._keys.get(kid)
        if key is None and not self._is_up_to_date:
            raise Unavailable("who asks cannot be verified now", retry_after_s=REFETCH_S)
        return key

    async def _fetch(self) -> None:
        self._fetched_at = time.monotonic()
        self._is_up_to_date = False
        try:
            async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
                answer = await client.get(self._url)
                answer.raise_for_status()
                self._keys = public_keys(answer.json())
                self._is_up_to_date = True
        except (httpx2.HTTPError, jwt.PyJWTError, ValueError) as error:
            log.warning("the gateway's keys could not be fetched", error=repr(error))


def public_keys(document: dict[str, object]) -> dict[str, EllipticCurvePublicKey]:
    """Read a JWKS document; keys that are not elliptic-curve signing keys are left out."""
    keys: dict[str, EllipticCurvePublicKey] = {}
    for jwk in jwt.PyJWKSet.from_dict(document).keys:
        if jwk.key_id and isinstance(jwk.key, EllipticCurvePublicKey):
            keys[jwk.key_id] = jwk.key
    return keys
