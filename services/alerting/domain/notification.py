"""A notice on its way: when it is tried again, and when it need not go any more."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid5

from services.alerting.domain.alert import Alert, State
from services.alerting.domain.channel import Channel, ChannelKind
from services.alerting.domain.notice import Notice, NoticeKind

SHORTEST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(hours=24)
MOST_ATTEMPTS = 10
"""With the waits between them that is about two and a half days."""


class Status(StrEnum):
    """How far a notification has come. The last three are final."""

    PENDING = "pending"
    SENDING = "sending"
    """Someone has claimed it, for as long as the lease lasts."""
    DELIVERED = "delivered"
    SUPERSEDED = "superseded"
    """It need not go any more; the reason says why."""
    DEAD = "dead"
    """Given up; the reason says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One notice for one channel. Its id is the same over all attempts."""

    id: UUID
    tenant_id: UUID
    alert_id: UUID
    channel_id: UUID
    channel_name: str
    channel_kind: ChannelKind
    kind: NoticeKind
    status: Status
    attempts: int
    created_at: datetime
    due_at: datetime
    """When it is looked at next: the next attempt, or the end of the lease."""
    finished_at: datetime | None
    reason: str
    """What the last attempt failed of, or why there was none."""
    receipt: str
    """The receiver's word, once delivered."""


def notification_id(alert_id: UUID, channel_id: UUID, kind: NoticeKind, sequence: int = 0) -> UUID:
    """Return the id of the `sequence`-th notice of this kind about an alert to a channel."""
    return uuid5(alert_id, f"{channel_id}:{kind}:{sequence}")


def wait_before(attempts: int, *, asked: timedelta | None, jitter: float) -> timedelta:
    """Return how long to wait after so many failed attempts (from 1 on).

    Four times longer each time, from 5 s up to a day; a receiver that asks for longer gets it, up
    to a day as well. `jitter` in [0, 1) spreads it over up to a quarter more, so that those who
    failed together do not come back together.
    """
    grown = SHORTEST_WAIT * (1 << 2 * min(attempts - 1, 10))
    least = max(min(grown, LONGEST_WAIT), asked or timedelta())
    return min(least * (1 + jitter / 4), LONGEST_WAIT)


def reason_to_skip(kind: NoticeKind, channel: Channel | None, alert: Alert) -> str | None:
    """Return why a notice need not go any more, or None if it must.

    People need not hear of a new alert that someone has taken on meanwhile; systems, which keep
    books on our alerts, must.
    """
    if channel is None:
        return "the channel was removed"
    if not channel.is_enabled:
        return "the channel is disabled"
    if kind is NoticeKind.OPENED:
        if alert.state is State.RESOLVED:
            return "the alert was resolved before it could be told"
        if alert.state is not State.NEW and channel.kind.tells_people:
            return f"the alert was {alert.state} before it could be told"
    return None


def notice_of(
    alert: Alert,
    *,
    notification_id: UUID,
    kind: NoticeKind,
    actor: str | None,
) -> Notice:
    """Return what is to be told. `actor` is who did it, None if the platform did."""
    at = alert.resolved_at if kind is NoticeKind.RESOLVED else alert.opened_at
    return Notice(
        notification_id=notification_id,
        alert_id=alert.id,
        tenant_id=alert.tenant_id,
        kind=kind,
        severity=alert.severity,
        title=alert.title,
        message=alert.message,
        url=f"/alerts/{alert.id}",
        opened_at=alert.opened_at,
        at=at or alert.opened_at,
        device_id=alert.device_id,
        device_name=alert.device_name,
        metric=alert.metric,
        value=alert.value,
        rule_name=alert.title if alert.source_kind == "rule" else None,
        condition=alert.condition,
        actor=actor,
    )
