"""Whether a device is there, from what endpoints see and when: the newest connection decides."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from services.ingest.domain.device import Status

MOST_AHEAD = timedelta(minutes=5)
"""What was noted for later than this from now came from a clock that has been set back since."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What an endpoint saw: a device came, or it went."""

    tenant_id: UUID
    device_id: UUID
    status: Status
    reason: str
    at: datetime
    connected_at: datetime
    """When the connection began that this is said of."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the registry knows of a device's being there."""

    status: Status
    reason: str
    status_at: datetime | None
    endpoint_id: UUID | None
    """Who holds the newest connection; None when it is over."""
    connected_at: datetime | None
    """When the newest connection began."""


def is_overtaken(at: datetime, by: datetime | None, now: datetime) -> bool:
    """Whether something newer is noted already: words come by several ways, and not in order."""
    return by is not None and at < by <= now + MOST_AHEAD


def after(noted: Noted, seen: Seen, endpoint_id: UUID) -> Noted:
    """Return what is known once an endpoint has told what it saw.

    The end of an older connection, told late or by another endpoint, changes nothing. Neither does
    a status that is older than the device's own word.
    """
    if is_overtaken(seen.connected_at, noted.connected_at, seen.at):
        return noted
    noted = replace(
        noted,
        endpoint_id=endpoint_id if seen.status is Status.ONLINE else None,
        connected_at=seen.connected_at,
    )
    if is_overtaken(seen.at, noted.status_at, seen.at):
        return noted
    if (noted.status, noted.reason) == (seen.status, seen.reason):
        return noted
    return replace(noted, status=seen.status, reason=seen.reason, status_at=seen.at)
