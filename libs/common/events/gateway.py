"""What the gateway says: sessions that end before their time."""

from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class SessionRevoked(Event, frozen=True, kw_only=True):
    """A session ended: its access tokens are void from now on, its connections are cut.

    `reason` is logged_out, reused (a refresh token came a second time), left (the user may no
    longer enter the tenant) or tenant_closed.
    """

    type: ClassVar[str] = "session.revoked.v1"
    source: ClassVar[str] = "gateway"
    session_id: UUID
    user_id: UUID
    reason: str
