"""An alert: what it is, and who or what may bring it from one state into another."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.errors import Conflict
from libs.common.severity import Severity
from services.alerting.domain.trigger import FiringRecord, SourceKind, Trigger


class State(StrEnum):
    """How far an alert has come. Only `resolved` is final."""

    NEW = "new"
    ACKNOWLEDGED = "acknowledged"
    """Someone has taken it on."""
    INVESTIGATING = "investigating"
    """Someone looks for the cause."""
    RESOLVED = "resolved"


class How(StrEnum):
    """What ended an alert."""

    BY_HAND = "by_hand"
    CLEARED = "cleared"
    """That which raised it said that it is over."""
    DEVICE_DELETED = "device_deleted"


class WrongState(Conflict):
    """The alert's state does not allow it; the text names the state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that somebody should look at. Times are UTC.

    While an alert is open, whatever has the same `dedup_key` is folded into it: `count` says how
    often, `last_seen_at` when last; `severity`, `message` and `value` are those of the worst and
    the latest.
    """

    id: UUID
    tenant_id: UUID
    dedup_key: str
    title: str
    message: str
    severity: Severity
    state: State
    source_kind: SourceKind
    source_id: UUID
    opened_at: datetime
    last_seen_at: datetime
    count: int = 1
    device_id: UUID | None = None
    device_name: str | None = None
    """As the device is called now; None if we have not heard of it."""
    metric: str | None = None
    value: float | None = None
    condition: str | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: UUID | None = None
    acknowledged_by_name: str | None = None
    resolved_at: datetime | None = None
    resolved_by: UUID | None = None
    resolved_by_name: str | None = None
    resolved_how: How | None = None
    version: int = 1

    @property
    def is_open(self) -> bool:
        return self.state is not State.RESOLVED


@dataclass(frozen=True, slots=True)
class Standing:
    """What a trigger meets: the alert that is open, what is known of its firing, of its device."""

    present: Alert | None
    record: FiringRecord | None
    device_is_gone: bool


def open_alert(trigger: Trigger, *, alert_id: UUID, tenant_id: UUID) -> Alert:
    """Return the alert that a trigger opens."""
    return Alert(
        id=alert_id,
        tenant_id=tenant_id,
        dedup_key=trigger.dedup_key,
        title=trigger.title,
        message=trigger.message,
        severity=trigger.severity,
        state=State.NEW,
        source_kind=trigger.source_kind,
        source_id=trigger.source_id,
        opened_at=trigger.at,
        last_seen_at=trigger.at,
        device_id=trigger.device_id,
        metric=trigger.metric,
        value=trigger.value,
        condition=trigger.condition,
    )


def fold(alert: Alert, trigger: Trigger) -> Alert:
    """Return the open alert with one more trigger in it.

    Its state stays what people have made it; its severity may rise and never falls; a trigger
    that came late counts, but does not overwrite what is newer.
    """
    is_newest = trigger.at >= alert.last_seen_at
    return replace(
        alert,
        count=alert.count + 1,
        severity=max(alert.severity, trigger.severity),
        last_seen_at=max(alert.last_seen_at, trigger.at),
        message=trigger.message if is_newest else alert.message,
        value=trigger.value if is_newest else alert.value,
        condition=trigger.condition if is_newest else alert.condition,
        version=alert.version + 1,
    )


def acknowledge(alert: Alert, *, by: UUID, at: datetime) -> Alert:
    """Let someone take a new alert on; again by the same person changes nothing.

    Raises WrongState.
    """
    if alert.state is State.ACKNOWLEDGED and alert.acknowledged_by == by:
        return alert
    if alert.state is not State.NEW:
        raise WrongState(f"the alert is {alert.state}; only a new one can be acknowledged")
    return replace(
        alert,
        state=State.ACKNOWLEDGED,
        acknowledged_at=at,
        acknowledged_by=by,
        version=alert.version + 1,
    )


def investigate(alert: Alert, *, by: UUID, at: datetime) -> Alert:
    """Let someone look for the cause, which acknowledges a new alert too. Raises WrongState.

    Again, by anyone, changes nothing: several may look.
    """
    if alert.state is State.INVESTIGATING:
        return alert
    if alert.state is State.RESOLVED:
        raise WrongState("the alert is resolved; there is nothing to investigate any more")
    return replace(
        alert,
        state=State.INVESTIGATING,
        acknowledged_at=alert.acknowledged_at or at,
        acknowledged_by=alert.acknowledged_by or by,
        version=alert.version + 1,
    )


def resolve(alert: Alert, *, how: How, by: UUID | None, at: datetime) -> Alert:
    """Close an open alert, acknowledged or not. Raises WrongState if it is resolved."""
    if alert.state is State.RESOLVED:
        raise WrongState("the alert is resolved already")
    return replace(
        alert,
        state=State.RESOLVED,
        resolved_at=at,
        resolved_by=by,
        resolved_how=how,
        version=alert.version + 1,
    )


class What(StrEnum):
    """What a line of an alert's history tells of."""

    OPENED = "opened"
    SEVERITY_RAISED = "severity_raised"
    ACKNOWLEDGED = "acknowledged"
    INVESTIGATION_STARTED = "investigation_started"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One thing that happened to an alert; never changed afterwards. `by` None: the platform."""

    what: What
    at: datetime
    state: State
    """The state it was in from then on."""
    severity: Severity
    by: UUID | None = None
    by_name: str | None = None
    detail: str = ""
    seq: int = 0
    """Its place in the history; given by the store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What someone wrote to an alert."""

    id: UUID
    at: datetime
    by: UUID
    text: str
    by_name: str | None = None
    seq: int = 0
    """Its place among the notes; given by the store."""
