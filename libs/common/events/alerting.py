"""What alerting says: what becomes of alerts, and of the messages about them."""

from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event
from libs.common.severity import Severity


class AlertOpened(Event, frozen=True, kw_only=True):
    """An alert was opened. `source_kind` is rule, anomaly, device or quota; `source_id` that thing's id."""

    type: ClassVar[str] = "alert.opened.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    severity: Severity
    title: str
    message: str
    source_kind: str
    source_id: UUID
    device_id: UUID | None = None
    metric: str | None = None
    value: float | None = None


class AlertSeverityRaised(Event, frozen=True, kw_only=True):
    """An open alert got worse."""

    type: ClassVar[str] = "alert.severity_raised.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    previous: Severity
    severity: Severity


class AlertAcknowledged(Event, frozen=True, kw_only=True):
    """Someone took an alert on."""

    type: ClassVar[str] = "alert.acknowledged.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    by: UUID


class AlertInvestigationStarted(Event, frozen=True, kw_only=True):
    """Someone began to look for the cause."""

    type: ClassVar[str] = "alert.investigation_started.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    by: UUID


class AlertResolved(Event, frozen=True, kw_only=True):
    """An alert is over. `how` is by_hand, cleared or device_deleted; `by` is who, if by hand."""

    type: ClassVar[str] = "alert.resolved.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    how: str
    by: UUID | None = None


class AlertNoted(Event, frozen=True, kw_only=True):
    """Someone wrote a note to an alert."""

    type: ClassVar[str] = "alert.noted.v1"
    source: ClassVar[str] = "alerting"
    alert_id: UUID
    note_id: UUID
    by: UUID


class NotificationDelivered(Event, frozen=True, kw_only=True):
    """A channel's receiver took a message. `kind` is what it told of: opened, resolved."""

    type: ClassVar[str] = "notification.delivered.v1"
    source: ClassVar[str] = "alerting"
    notification_id: UUID
    alert_id: UUID
    channel_id: UUID
    kind: str
    attempts: int


class NotificationFailed(Event, frozen=True, kw_only=True):
    """A message was given up. `reason` may be shown to the tenant."""

    type: ClassVar[str] = "notification.failed.v1"
    source: ClassVar[str] = "alerting"
    notification_id: UUID
    alert_id: UUID
    channel_id: UUID
    kind: str
    attempts: int
    reason: str
