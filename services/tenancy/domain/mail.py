"""A mail that is to be sent: what for, to whom, and how long that is tried."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

FIRST_WAIT = timedelta(seconds=10)
LONGEST_WAIT = timedelta(hours=1)
TRIED_FOR = timedelta(days=1)


class Purpose(StrEnum):
    """What a mail is for."""

    INVITATION = "invitation"
    """`about` is the invited user."""
    REGISTRATION = "registration"
    """Asks who registered to confirm the address; `about` is the registration."""
    ALREADY_REGISTERED = "already_registered"
    """Somebody registered with the address of an account that there is."""
    CONFIRM_ADDRESS = "confirm_address"
    """Asks a user to confirm the address they have; `about` is the user."""
    PASSWORD_RESET = "password_reset"  # noqa: S105 - no password
    """`about` is the user."""
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password
    """`about` is the user."""
    FACTORS_CHANGED = "factors_changed"
    """A second factor was set up, taken away or misused; `about` is the user."""


class MailStatus(StrEnum):
    """What has become of a mail. One that was taken is kept no longer."""

    WAITING = "waiting"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that is to be sent. What it says is written when it is."""

    id: UUID
    purpose: Purpose
    email: str = field(repr=False)
    about: UUID | None
    created_at: datetime
    status: MailStatus = MailStatus.WAITING
    attempts: int = 0
    reason: str | None = None
    """Why the last attempt failed."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a mail says."""

    tenant_name: str
    at: datetime
    """When what it speaks of happened."""
    link: str = field(repr=False)
    until: datetime | None = None
    """How long the link is good."""


def next_attempt(mail: Mail, now: datetime) -> datetime | None:
    """Return when to try again after an attempt that failed; None: give up."""
    wait = min(FIRST_WAIT * 3 ** min(mail.attempts - 1, 10), LONGEST_WAIT)
    return now + wait if now + wait < mail.created_at + TRIED_FOR else None
