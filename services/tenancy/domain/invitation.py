"""An invitation: what lets a user join a tenant, once.

Nobody sets a password for somebody else: a tenant's admin makes the invitation, and whoever accepts
it chooses the password, or proves the one they have. The token is 256 random bits, so that a plain
SHA-256 is enough to keep of it.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.tenancy.domain.token import Prefix, new_token


@dataclass(frozen=True, slots=True)
class Invitation:
    """A new invitation. The token is shown once, to who invites; its hash is kept."""

    token: str = field(repr=False)
    expires_at: datetime

    @property
    def token_hash(self) -> bytes:
        """What is kept of the token."""
        return hash_token(self.token)


def new_invitation(*, lifetime: timedelta, at: datetime) -> Invitation:
    """Return an invitation that is good from now on, for as long as it lasts."""
    return Invitation(new_token(Prefix.INVITATION), at + lifetime)


def hash_token(token: str) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).digest()
