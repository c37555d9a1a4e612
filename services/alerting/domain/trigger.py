"""What raises and ends alerts, whoever said it: rules, models, the devices themselves."""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid5

from libs.common.events.ingest import DeviceAlertReported
from libs.common.events.ml import AnomalyDetected
from libs.common.events.rules import RuleCleared, RuleTriggered
from libs.common.events.tenancy import QuotaExceeded, QuotaRelieved
from libs.common.severity import Severity

MOST_TITLE = 200
MOST_DEVICE_ALARMS = 20
"""Open at once of one device's own: it chooses their keys. What comes beyond is one alert."""

_SCORES = ((0.95, Severity.CRITICAL), (0.85, Severity.HIGH), (0.7, Severity.MEDIUM))


class SourceKind(StrEnum):
    """Who raised an alert."""

    RULE = "rule"
    ANOMALY = "anomaly"
    DEVICE = "device"
    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class Firing:
    """What goes on until it is said to be over.

    A rule's firing happens once and then never again. A device's alarm `recurs` under the same
    id, so that its times decide whether it is on.
    """

    id: UUID
    recurs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A reason for an alert. Equal `dedup_key`: the same alert, as long as it is open.

    `firing` is None where nobody will say that it is over.
    """

    dedup_key: str
    title: str
    message: str
    severity: Severity
    source_kind: SourceKind
    source_id: UUID
    at: datetime
    device_id: UUID | None = None
    metric: str | None = None
    value: float | None = None
    condition: str | None = None
    firing: Firing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """The word that a firing is over."""

    dedup_key: str
    firing: Firing
    at: datetime
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FiringRecord:
    """What is known of a firing, in whatever order it was heard."""

    alert_id: UUID | None
    """The alert it went into; None if the clearing came first."""
    triggered_at: datetime | None
    cleared_at: datetime | None


def is_known(trigger: Trigger, record: FiringRecord | None) -> bool:
    """Whether the trigger says nothing new: its one firing, or this or a later turn of it, was heard."""
    if trigger.firing is None or record is None or record.triggered_at is None:
        return False
    if not trigger.firing.recurs:
        return True
    return record.alert_id is not None and is_over(trigger, record)


def is_over(trigger: Trigger, record: FiringRecord | None) -> bool:
    """Whether that which the trigger tells of had ended before we heard of it."""
    if trigger.firing is None or record is None or record.cleared_at is None:
        return False
    return not trigger.firing.recurs or record.cleared_at >= trigger.at


def trigger_of_rule(event: RuleTriggered) -> Trigger:
    """Return the reason that a broken rule is."""
    return Trigger(
        dedup_key=_rule_key(event.rule_id, event.device_id),
        title=_title(event.rule_name),
        message=_plain(_said(event.metric, event.value, event.condition)),
        severity=event.severity,
        source_kind=SourceKind.RULE,
        source_id=event.rule_id,
        at=event.at,
        device_id=event.device_id,
        metric=event.metric,
        value=_finite(event.value),
        condition=_plain(event.condition),
        firing=Firing(event.firing_id),
    )


def clearing_of_rule(event: RuleCleared) -> Clearing:
    """Return the word that a rule holds again, or is no more."""
    return Clearing(
        dedup_key=_rule_key(event.rule_id, event.device_id),
        firing=Firing(event.firing_id),
        at=event.at,
        detail=event.reason,
    )


def trigger_of_anomaly(event: AnomalyDetected) -> Trigger:
    """Return the reason that an anomaly is: one alert for a device's metric, whichever model."""
    expected = _finite(event.expected)
    told = [f"score {event.score:.2f}"]
    if expected is not None:
        told.append(f"expected about {expected:.6g}")
    return Trigger(
        dedup_key=f"ml:{event.device_id}:{event.metric}",
        title=_title(f"Unusual {event.metric}"),
        message=_plain(_said(event.metric, event.value, ", ".join(told))),
        severity=severity_of_score(event.score),
        source_kind=SourceKind.ANOMALY,
        source_id=event.model_id,
        at=event.at,
        device_id=event.device_id,
        metric=event.metric,
        value=_finite(event.value),
        condition=", ".join(told),
    )


def severity_of_score(score: float) -> Severity:
    """Return how bad an anomaly of this score is; above 0.95 it is critical."""
    return next((severity for least, severity in _SCORES if score > least), Severity.LOW)


def trigger_of_device(event: DeviceAlertReported) -> Trigger:
    """Return the reason that a device's own alarm is."""
    key = _plain(event.key)
    message = _plain(event.message)
    return Trigger(
        dedup_key=_device_key(event.device_id, key),
        title=_title(message),
        message=message,
        severity=Severity(event.severity),
        source_kind=SourceKind.DEVICE,
        source_id=event.device_id,
        at=event.at,
        device_id=event.device_id,
        firing=Firing(uuid5(event.device_id, key), recurs=True),
    )


def too_many_alarms(trigger: Trigger) -> Trigger:
    """Return what a device's alarm becomes once too many of the device are open.

    All such are one alert. It counts them, shows the newest, is as severe as the worst, and stays
    open until somebody resolves it: which of them are over is not kept.
    """
    return replace(
        trigger,
        dedup_key=too_many_key(trigger.source_id),
        title="Too many alarms from one device",
        message=f"more than {MOST_DEVICE_ALARMS} are open; the latest: {trigger.message}",
        firing=None,
    )


def too_many_key(device_id: UUID) -> str:
    """Return the key of the one alert for the alarms of a device that has too many open."""
    return f"device-alarms:{device_id}"


def clearing_of_device(event: DeviceAlertReported) -> Clearing:
    """Return the device's word that its alarm is over."""
    key = _plain(event.key)
    return Clearing(
        dedup_key=_device_key(event.device_id, key),
        firing=Firing(uuid5(event.device_id, key), recurs=True),
        at=event.at,
        detail=_plain(event.message),
    )


def trigger_of_quota(event: QuotaExceeded) -> Trigger:
    """Return the reason that a quota is which is nearly used up, or is: one alert for each quota."""
    is_reached = event.level == "reached"
    told = f"{event.used} of {event.most} are used"
    return Trigger(
        dedup_key=_quota_key(event.resource),
        title=_title(f"Quota {event.resource} {'reached' if is_reached else 'nearly reached'}"),
        message=_plain(f"{told}; {'no more is taken' if is_reached else 'soon no more is taken'}"),
        severity=Severity.HIGH if is_reached else Severity.MEDIUM,
        source_kind=SourceKind.QUOTA,
        source_id=event.tenant_id,
        at=event.at,
        firing=Firing(uuid5(event.tenant_id, _quota_key(event.resource)), recurs=True),
    )


def clearing_of_quota(event: QuotaRelieved) -> Clearing:
    """Return the word that the tenant is well within a quota again."""
    return Clearing(
        dedup_key=_quota_key(event.resource),
        firing=Firing(uuid5(event.tenant_id, _quota_key(event.resource)), recurs=True),
        at=event.at,
        detail="within the quota again",
    )


def _quota_key(resource: str) -> str:
    return f"quota:{resource}"


def _rule_key(rule_id: UUID, device_id: UUID) -> str:
    return f"rule:{rule_id}:{device_id}"


def _device_key(device_id: UUID, key: str) -> str:
    return f"device:{device_id}:{key}"


def _said(metric: str | None, value: float | None, condition: str) -> str:
    if metric is None or (finite := _finite(value)) is None:
        return condition
    return f"{metric} is {finite:.6g}: {condition}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(text: str) -> str:
    # PostgreSQL's text holds every character but this one.
    return text.replace("\x00", "")


def _title(text: str) -> str:
    line = " ".join(_plain(text).split()) or "Alert"
    return line if len(line) <= MOST_TITLE else line[: MOST_TITLE - 1] + "…"
