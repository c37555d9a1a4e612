"""A session: what a login begins, a family of refresh tokens continues, and a revocation ends.

A refresh token is good for one use. Whoever presents a used one has a copy that another used
before: one of the two is a thief, and the whole family ends. The immediate predecessor is
forgiven for ten seconds, because two tabs, or a lost answer, do the same innocently: each time it
gives another successor. Of those one alone may go on. Tabs keep what came last, and a lost answer
is never used; so who uses a second one is a thief, or was robbed, and the family ends.
Source: RFC 9700, section 4.14.2; Auth0's rotation with an overlap of the predecessor alone.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.gateway.domain.login import NOBODYS, Client, Proof

GRACE = timedelta(seconds=10)


class Ended(StrEnum):
    """Why a session ended before its time."""

    LOGGED_OUT = "logged_out"
    REUSED = "reused"
    LEFT = "left"
    ENDED_BY_USER = "ended_by_user"
    ENDED_BY_ADMIN = "ended_by_admin"
    TENANT_CLOSED = "tenant_closed"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password


class Verdict(StrEnum):
    """What becomes of a refresh token that is presented."""

    ROTATE = "rotate"
    REFUSE = "refuse"
    REVOKE_FAMILY = "revoke_family"


@dataclass(frozen=True, slots=True)
class Session:
    """One login of a user to one tenant."""

    id: UUID
    tenant_id: UUID
    user_id: UUID
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    client: Client = NOBODYS
    proofs: tuple[Proof, ...] = ()
    """How it was opened."""
    proved_at: datetime | None = None
    """When the user last showed what proves them; None: before that was noted."""
    last_seen_at: datetime | None = None
    """When it was opened or refreshed last."""

    @property
    def by_provider(self) -> bool:
        """Whether the tenant's own identity provider let the user in: then into this tenant alone."""
        return Proof.SSO in self.proofs

    def is_open(self, now: datetime) -> bool:
        """Whether it may be continued."""
        return self.revoked_at is None and now < self.expires_at


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What is kept of a refresh token; never the token itself."""

    token_hash: bytes
    session_id: UUID
    parent_hash: bytes | None
    expires_at: datetime
    used_at: datetime | None = None


def judge(
    session: Session,
    token: RefreshToken,
    *,
    successor_used: bool,
    sibling_used: bool,
    now: datetime,
) -> Verdict:
    """Say what becomes of a token.

    `successor_used`: whether one that it was exchanged for was used; `sibling_used`: whether
    another one that its predecessor was exchanged for was.
    """
    if not session.is_open(now) or now >= token.expires_at:
        return Verdict.REFUSE
    if sibling_used:
        return Verdict.REVOKE_FAMILY
    if token.used_at is None:
        return Verdict.ROTATE
    if not successor_used and now - token.used_at <= GRACE:
        return Verdict.ROTATE
    return Verdict.REVOKE_FAMILY
