"""How somebody gets in: what they have proved, and whether that is enough.

One gate stands before every way to a session. Who has a second factor shows it; who has none, and
enters a tenant that asks for one, sets one up first. What was proved so far is kept as a pending
login, under a token that is good for the next step alone.
"""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.gateway.domain.account import Account, Membership

PENDING_PREFIX = "iiotm_"
PENDING_LIFETIME = timedelta(minutes=5)
MOST_ATTEMPTS = 5
"""So many codes may be tried with one pending login; tenancy counts them for the account besides."""
PROOF_LASTS = timedelta(minutes=10)
"""How long after showing the password one may change what protects the account."""
LONGEST_USER_AGENT = 256


class Proof(StrEnum):
    """By what somebody has proved who they are (after RFC 8176, `amr`)."""

    PASSWORD = "pwd"  # noqa: S105 - the name of a method
    CODE = "otp"
    PASSKEY = "webauthn"
    RECOVERY = "recovery"
    SSO = "sso"


_SECOND = frozenset({Proof.CODE, Proof.PASSKEY, Proof.RECOVERY})
"""What a password alone is not. A passkey by itself has verified its owner."""


class Gate(StrEnum):
    """What somebody finds who wants to enter."""

    OPEN = "open"
    PROVE = "prove"
    ENROL = "enrol"


@dataclass(frozen=True, slots=True)
class Client:
    """From where somebody comes, as far as they can be believed."""

    address: str = ""
    user_agent: str = ""
    """What their program calls itself."""


NOBODYS = Client()


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """What is kept of a login that waits for its second step."""

    token_hash: bytes
    tenant_id: UUID
    user_id: UUID
    proofs: tuple[Proof, ...]
    enrols: bool
    """Whether a second factor is to be set up; else the one there is is to be shown."""
    proved_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class SecondStep:
    """What somebody is told who has to go on."""

    token: str = field(repr=False)
    factors: tuple[str, ...]
    enrols: bool
    expires_in: int


def gate(account: Account, membership: Membership, proofs: Collection[Proof]) -> Gate:
    """Say what somebody finds who has proved this much.

    Whom the tenant's own identity provider let in has shown there what the tenant asks for.
    """
    if is_strong(proofs) or Proof.SSO in proofs:
        return Gate.OPEN
    if account.factors:
        return Gate.PROVE
    return Gate.ENROL if membership.second_factor_required else Gate.OPEN


def is_strong(proofs: Collection[Proof]) -> bool:
    """Whether it is more than a password."""
    return not _SECOND.isdisjoint(proofs)


def is_recent(proved_at: datetime, now: datetime) -> bool:
    """Whether the password was shown lately enough to change what protects the account."""
    return now - proved_at < PROOF_LASTS


def new_pending_token() -> str:
    """Return a fresh token for the second step."""
    return PENDING_PREFIX + secrets.token_urlsafe(32)


def new_challenge() -> bytes:
    """Return fresh random bytes for an authenticator to answer."""
    return secrets.token_bytes(32)
