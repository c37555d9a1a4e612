"""What the gateway says: sessions that end before their time, and what was set at run time."""

from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class SessionRevoked(Event, frozen=True, kw_only=True):
    """A session ended: its access tokens are void from now on, its connections are cut.

    `reason` is logged_out, reused (a refresh token came a second time), left (the user may no
    longer enter the tenant), tenant_closed, ended_by_user (from another session) or ended_by_admin.
    """

    type: ClassVar[str] = "session.revoked.v1"
    source: ClassVar[str] = "gateway"
    session_id: UUID
    user_id: UUID
    reason: str


class RateLimitsChanged(Event, frozen=True, kw_only=True):
    """How much may be asked for was changed: by a tenant, or (`tenant_id` all zeros) for everyone."""

    type: ClassVar[str] = "rate_limits.changed.v1"
    source: ClassVar[str] = "gateway"


class CorsOriginsChanged(Event, frozen=True, kw_only=True):
    """Which sites' scripts may use the API in the name of a tenant's users was changed."""

    type: ClassVar[str] = "cors_origins.changed.v1"
    source: ClassVar[str] = "gateway"
