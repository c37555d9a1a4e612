"""What proves a user beside the password: one-time codes, passkeys, and codes for the day both are lost.

Who has none enters with the password alone. As soon as they have one, a password alone opens
nothing any more.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import pyotp

STEP_S = 30
"""How long a one-time code is the present one (RFC 6238)."""
DRIFT_STEPS = 1
"""By how many steps a phone's clock may be wrong, in either direction."""
SECRET_CHARACTERS = 32
"""160 bits in base 32, as RFC 4226 recommends."""
FREE_FAILURES = 5
FIRST_WAIT = timedelta(seconds=30)
LONGEST_WAIT = timedelta(hours=1)
RECOVERY_CODES = 10
RECOVERY_BYTES = 10
"""80 random bits: a plain SHA-256 is enough to keep of them, and nobody guesses one."""


class Kind(StrEnum):
    """By what a user proves themselves the second time."""

    TOTP = "totp"
    PASSKEY = "passkey"
    RECOVERY = "recovery"


class Change(StrEnum):
    """What happened to a user's factors."""

    TOTP_ADDED = "totp_added"
    PASSKEY_ADDED = "passkey_added"
    REMOVED = "removed"
    RECOVERY_CODES_RENEWED = "recovery_codes_renewed"
    RECOVERY_CODE_USED = "recovery_code_used"
    PASSKEY_CLONED = "passkey_cloned"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class OneTimeCodes:
    """A user's authenticator app, as it is kept."""

    id: UUID
    user_id: UUID
    sealed_secret: bytes = field(repr=False)
    created_at: datetime
    confirmed_at: datetime | None = None
    last_used_at: datetime | None = None
    last_step: int = 0
    failures: int = 0
    failed_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether it counts as a factor."""
        return self.confirmed_at is not None


@dataclass(frozen=True, slots=True)
class Passkey:
    """A passkey, as it is kept."""

    id: UUID
    user_id: UUID
    credential_id: bytes
    public_key: bytes = field(repr=False)
    sign_count: int
    transports: tuple[str, ...]
    name: str
    created_at: datetime
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Factor:
    """One of a user's factors, as they see it."""

    id: UUID
    kind: Kind
    name: str
    created_at: datetime
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a login takes beyond the first factor: what the user has, and which tenants insist."""

    factors: tuple[Kind, ...] = ()
    required_by: frozenset[UUID] = frozenset()


NO_TERMS = Terms()
"""A password is enough."""


def new_secret() -> str:
    """Return a fresh secret for an authenticator app."""
    return pyotp.random_base32(SECRET_CHARACTERS)


def app_address(secret: str, *, account: str, issuer: str) -> str:
    """Return the address (otpauth:) by which an app takes a secret over."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)


def matching_step(secret: str, code: str, *, after: int, now: datetime) -> int | None:
    """Return the step that a code is of, if it is of about now and later than `after`; else None.

    It takes as long whichever step fits, or none.
    """
    digits = "".join(code.split())
    totp = pyotp.TOTP(secret, interval=STEP_S)
    present = int(now.timestamp()) // STEP_S
    found = None
    for step in range(present - DRIFT_STEPS, present + DRIFT_STEPS + 1):
        fits = hmac.compare_digest(totp.generate_otp(step).encode(), digits.encode())
        if fits and step > after and found is None:
            found = step
    return found


def wait_after(failures: int, failed_at: datetime | None, now: datetime) -> timedelta:
    """Return for how long no code is looked at, because too many were wrong.

    It doubles with each, to an hour: who knows the password and tries codes day and night finds one
    within a year with a chance of less than three in a hundred.
    """
    if failures < FREE_FAILURES or failed_at is None:
        return timedelta()
    # The exponent is bounded: 2 to the number of all failures would not fit.
    doublings: int = min(failures - FREE_FAILURES, 10)
    wait = min(FIRST_WAIT * (1 << doublings), LONGEST_WAIT)
    return max(failed_at + wait - now, timedelta())


def new_recovery_codes() -> tuple[str, ...]:
    """Return fresh recovery codes, each good once."""
    return tuple(_recovery_code() for _ in range(RECOVERY_CODES))


def hash_recovery_code(code: str) -> bytes:
    """Return what is kept of a recovery code, however it is typed."""
    letters = "".join(character for character in code.upper() if character.isalnum())
    return hashlib.sha256(letters.encode()).digest()


def is_copied(kept_count: int, shown_count: int) -> bool:
    """Whether a passkey's counter says that there are two of it.

    An authenticator that counts never shows the same number twice; one that does not shows 0 always.
    """
    return (kept_count > 0 or shown_count > 0) and shown_count <= kept_count


def listed(codes: OneTimeCodes | None, passkeys: Sequence[Passkey]) -> list[Factor]:
    """Return a user's factors, the oldest first."""
    factors = [
        Factor(key.id, Kind.PASSKEY, key.name, key.created_at, key.last_used_at) for key in passkeys
    ]
    if codes is not None and codes.is_active:
        factors.append(
            Factor(codes.id, Kind.TOTP, "Authenticator app", codes.created_at, codes.last_used_at)
        )
    return sorted(factors, key=lambda factor: factor.created_at)


def _recovery_code() -> str:
    letters = base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode().lower()
    return "-".join(letters[start : start + 4] for start in range(0, len(letters), 4))
