"""What rules says: a rule begins or ends to be broken, and a rule itself has changed."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import msgspec

from libs.common.events.base import Event
from libs.common.severity import Severity


class RuleTriggered(Event, frozen=True, kw_only=True):
    """A device began to break a rule; the firing lasts until `rule.cleared` with its `firing_id`.

    `at` is when it was found, `ts` when it happened: the time of the point. A replay of the same
    points says the same `id` and `firing_id`. What a kind of rule does not have is None.
    """

    type: ClassVar[str] = "rule.triggered.v1"
    source: ClassVar[str] = "rules"
    firing_id: UUID
    rule_id: UUID
    rule_name: str
    rule_version: int
    device_id: UUID
    severity: Severity
    condition: str
    """What the rule watches for, in words: "above 90 for 30 s"."""
    metric: str | None = None
    value: float | None = None
    threshold: float | None = None
    operator: str | None = None
    ts: datetime


class RuleCleared(Event, frozen=True, kw_only=True):
    """A firing ended: by a point, or because its rule or device is no more.

    `reason` is recovered, rule_changed, rule_disabled, rule_deleted or device_deleted. `ts` is the
    time of the point, or when the rule ended; `value` is that of the point, if there was one.
    """

    type: ClassVar[str] = "rule.cleared.v1"
    source: ClassVar[str] = "rules"
    firing_id: UUID
    rule_id: UUID
    rule_name: str
    rule_version: int
    device_id: UUID
    severity: Severity
    reason: str
    metric: str | None = None
    value: float | None = None
    threshold: float | None = None
    operator: str | None = None
    ts: datetime


class RuleChanged(Event, frozen=True, kw_only=True):
    """A rule was created, updated, enabled, disabled or deleted, as `change` says."""

    type: ClassVar[str] = "rule.changed.v1"
    source: ClassVar[str] = "rules"
    rule_id: UUID
    change: str


class CommandRequested(Event, frozen=True, kw_only=True):
    """A rule wants a device to do something.

    The same `key` of the same rule again is the same command, so a replay sends nothing twice.
    `timeout_s` is how long the device has to answer, `expires_at` until when it is sent at all;
    None: as the platform has it. Who sent it and what came of it is in `command.completed`.
    """

    type: ClassVar[str] = "command.requested.v1"
    source: ClassVar[str] = "rules"
    rule_id: UUID
    device_id: UUID
    key: str
    name: str
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    two_way: bool = True
    timeout_s: float | None = None
    expires_at: datetime | None = None
