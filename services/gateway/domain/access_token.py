"""Access tokens: what a logged-in client shows with every request (RFC 9068).

They name the user, the tenant and the session, and no permissions: those are looked up, so that a
change of roles takes effect at once.
"""

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from libs.common.errors import Unauthenticated
from services.gateway.domain.signing_key import ALGORITHM, SigningKey

ISSUER = "iiot-gateway"
AUDIENCE = "iiot-api"
TOKEN_TYPE = "at+jwt"  # noqa: S105 - the name of a type
REQUIRED = ("iss", "aud", "exp", "iat", "jti", "sub", "tenant", "session")
SKEW = timedelta(seconds=10)
"""How much the clocks of two replicas may differ."""
LONGEST = 4096


@dataclass(frozen=True, slots=True)
class Access:
    """What an access token says."""

    user_id: UUID
    tenant_id: UUID
    session_id: UUID
    token_id: UUID
    issued_at: datetime
    expires_at: datetime
    by_provider: bool = False
    """Whether the tenant's own identity provider let the user in: then into this tenant alone."""


def sign_access(access: Access, key: SigningKey) -> str:
    """Return the token that says this."""
    claims: dict[str, object] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(access.user_id),
        "tenant": str(access.tenant_id),
        "session": str(access.session_id),
        "jti": str(access.token_id),
        "iat": int(access.issued_at.timestamp()),
        "exp": int(access.expires_at.timestamp()),
    }
    if access.by_provider:
        claims["by_provider"] = True
    return jwt.encode(
        claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid, "typ": TOKEN_TYPE}
    )


def key_id_of(token: str) -> str:
    """Return the id of the key a token says it is signed with. Raises Unauthenticated."""
    if len(token) > LONGEST:
        raise _refusal()
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError) as error:
        raise _refusal() from error
    kid = header.get("kid")
    if (
        header.get("alg") != ALGORITHM
        or str(header.get("typ")).lower() != TOKEN_TYPE
        or not isinstance(kid, str)
    ):
        raise _refusal()
    return kid


def verify_access(
    token: str, keys: Mapping[str, EllipticCurvePublicKey], *, now: datetime
) -> Access:
    """Return what a token says. Raises Unauthenticated, in equal words whatever is wrong."""
    key = keys.get(key_id_of(token))
    if key is None:
        raise _refusal()
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            # The time is an argument here, and the library reads a clock.
            options={"require": list(REQUIRED), "verify_exp": False, "verify_iat": False},
        )
        access = Access(
            user_id=UUID(claims["sub"]),
            tenant_id=UUID(claims["tenant"]),
            session_id=UUID(claims["session"]),
            token_id=UUID(claims["jti"]),
            issued_at=_moment(claims["iat"]),
            expires_at=_moment(claims["exp"]),
            by_provider=claims.get("by_provider") is True,
        )
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise _refusal() from error
    if access.expires_at <= now or access.issued_at > now + SKEW:
        raise _refusal()
    return access


def _moment(seconds: object) -> datetime:
    if not isinstance(seconds, int) or not 0 <= seconds < 2**40:
        raise ValueError("not a time")
    return datetime.fromtimestamp(seconds, UTC)


def _refusal() -> Unauthenticated:
    return Unauthenticated("the access token is not valid, or no longer")
