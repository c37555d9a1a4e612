"""What one person or system is to be told about one alert, whatever channel carries it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.severity import Severity


class NoticeKind(StrEnum):
    """What happened to the alert."""

    OPENED = "opened"
    ESCALATED = "escalated"
    REMINDED = "reminded"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    SLA_BREACHED = "sla_breached"
    TEST = "test"
    """Nothing happened: someone tries the channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message, complete: a channel needs nothing else to render it.

    The same notice renders to the same bytes each time, so that a repeated delivery can be
    recognised by its `notification_id`. Texts may hold anything a user or device wrote;
    channels escape them.
    """

    notification_id: UUID
    """Equal over all attempts: webhook-id, Message-ID."""
    alert_id: UUID
    """What messages are threaded by."""
    tenant_id: UUID
    kind: NoticeKind
    severity: Severity
    title: str
    message: str
    url: str
    """Where the alert is shown: a path such as `/alerts/…`, or a whole http(s) URL."""
    opened_at: datetime
    at: datetime
    """When that which is told of happened; for `opened` it equals `opened_at`."""
    device_id: UUID | None = None
    device_name: str | None = None
    metric: str | None = None
    value: float | bool | str | None = None
    unit: str | None = None
    rule_name: str | None = None
    condition: str | None = None
    """What the rule watches for, in words: "above 90 °C for 30 s"."""
    actor: str | None = None
    """Who acknowledged or resolved; None: the platform itself."""
