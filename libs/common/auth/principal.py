"""Who is asking, as the gateway vouches for it.

The gateway exchanges whatever a client brought for a principal token that lives a minute; the
services verify that token and nothing else.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)

from libs.common.errors import Unauthenticated

HEADER = "x-iiot-principal"
ALGORITHM = "ES256"
ISSUER = "iiot-gateway"
AUDIENCE = "iiot-services"
TOKEN_TYPE = "principal+jwt"  # noqa: S105 - the name of a type
LIFETIME = timedelta(seconds=60)
LEEWAY_S = 10
CACHED = 4096


class Kind(StrEnum):
    """What kind of client stands behind a principal."""

    USER = "user"
    API_KEY = "api_key"
    SERVICE = "service"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A verified caller within one tenant.

    Permissions are `<resource>:<action>`; `alerts:*` holds every action on alerts, `*:read`
    reading of everything, `*` all.
    """

    subject: UUID
    tenant_id: UUID
    kind: Kind = Kind.USER
    permissions: frozenset[str] = frozenset()
    platform_admin: bool = False
    session_id: UUID | None = None
    groups: frozenset[UUID] | None = None
    """The device groups that the caller is limited to, with all below them; None: all devices."""

    def may(self, permission: str) -> bool:
        """Whether the principal holds the permission `<resource>:<action>`."""
        if permission in self.permissions or "*" in self.permissions:
            return True
        resource, _, action = permission.partition(":")
        return f"{resource}:*" in self.permissions or f"*:{action}" in self.permissions


class KeySource(Protocol):
    """Finds the gateway's public keys."""

    async def key(self, kid: str) -> EllipticCurvePublicKey | None:
        """Return the key of that id, or None if there is none such. May raise Unavailable."""
        ...


class StaticKeys:
    """Keys that are known beforehand."""

    def __init__(self, keys: dict[str, EllipticCurvePublicKey]) -> None:
        self._keys = keys

    async def key(self, kid: str) -> EllipticCurvePublicKey | None:
        """Return the key of that id."""
        return self._keys.get(kid)


class PrincipalSigner:
    """Signs principals; the gateway alone has the key."""

    def __init__(self, key: EllipticCurvePrivateKey, kid: str) -> None:
        self._key = key
        self._kid = kid

    def sign(self, principal: Principal, now: datetime) -> str:
        """Return a token that holds for a minute from `now`."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": int(now.timestamp()),
            "exp": int((now + LIFETIME).timestamp()),
            "principal": msgspec.to_builtins(principal),
        }
        return jwt.encode(
            claims, self._key, algorithm=ALGORITHM, headers={"kid": self._kid, "typ": TOKEN_TYPE}
        )


class PrincipalVerifier:
    """Verifies principal tokens; remembers those it has verified until they expire."""

    def __init__(self, keys: KeySource, wall: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._wall = wall
        self._verified: dict[str, tuple[float, Principal]] = {}

    async def verify(self, token: str) -> Principal:
        """Return the principal a token stands for.

        Raises Unauthenticated, whatever is wrong; Unavailable if that cannot be found out now.
        """
        known = self._verified.get(token)
        now = self._wall()
        if known is not None:
            if known[0] > now:
                return known[1]
            del self._verified[token]
        principal, expires = await self._verify(token)
        if len(self._verified) >= CACHED:
            self._verified.clear()
        self._verified[token] = (expires, principal)
        return principal

    async def _verify(self, token: str) -> tuple[Principal, float]:
        refusal = Unauthenticated("the request does not come through the gateway")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != TOKEN_TYPE or not isinstance(header.get("kid"), str):
                raise refusal
            key = await self._keys.key(header["kid"])
            if key is None:
                raise refusal
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
            principal = msgspec.convert(claims.get("principal"), Principal)
        except (jwt.PyJWTError, msgspec.ValidationError) as error:
            raise refusal from error
        return principal, float(claims["exp"]) + LEEWAY_S
