"""What makes an alert of what others say."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from libs.common.events.ingest import DeviceAlertReported
from libs.common.events.ml import AnomalyDetected
from libs.common.events.rules import RuleTriggered
from libs.common.severity import Severity
from services.alerting.domain.trigger import (
    MOST_TITLE,
    FiringRecord,
    is_known,
    is_over,
    severity_of_score,
    trigger_of_anomaly,
    trigger_of_device,
    trigger_of_rule,
)

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
TENANT, DEVICE, RULE = uuid4(), uuid4(), uuid4()


def a_rule_triggered(**changes: object) -> RuleTriggered:
    fields = {
        "tenant_id": TENANT,
        "at": NOW,
        "firing_id": uuid4(),
        "rule_id": RULE,
        "rule_name": "Bearing temperature",
        "rule_version": 1,
        "device_id": DEVICE,
        "severity": Severity.CRITICAL,
        "condition": "above 90 for 30 s",
        "metric": "bearing_temperature",
        "value": 96.4,
        "ts": NOW,
    }
    return RuleTriggered(**(fields | changes))  # type: ignore[arg-type]  # the fields' own types


def a_device_alert(at: datetime = NOW, **changes: object) -> DeviceAlertReported:
    fields = {
        "tenant_id": TENANT,
        "at": at,
        "device_id": DEVICE,
        "severity": "high",
        "message": "oil low",
        "key": "oil",
    }
    return DeviceAlertReported(**(fields | changes))  # type: ignore[arg-type]  # as above


def an_anomaly(**changes: object) -> AnomalyDetected:
    fields = {
        "tenant_id": TENANT,
        "at": NOW,
        "model_id": uuid4(),
        "device_id": DEVICE,
        "metric": "vibration",
        "score": 0.97,
        "value": 7.2,
        "expected": 1.5,
        "ts": NOW,
    }
    return AnomalyDetected(**(fields | changes))  # type: ignore[arg-type]  # as above


def test_a_rule_says_what_is_wrong_in_words() -> None:
    trigger = trigger_of_rule(a_rule_triggered())
    assert trigger.title == "Bearing temperature"
    assert trigger.message == "bearing_temperature is 96.4: above 90 for 30 s"


def test_firings_of_one_rule_on_one_device_are_one_alert_and_no_others() -> None:
    key = trigger_of_rule(a_rule_triggered()).dedup_key
    assert trigger_of_rule(a_rule_triggered(severity=Severity.LOW)).dedup_key == key
    assert trigger_of_rule(a_rule_triggered(device_id=uuid4())).dedup_key != key
    assert trigger_of_rule(a_rule_triggered(rule_id=uuid4())).dedup_key != key


def test_two_models_that_find_the_same_are_one_alert() -> None:
    key = trigger_of_anomaly(an_anomaly()).dedup_key
    assert trigger_of_anomaly(an_anomaly(model_id=uuid4())).dedup_key == key
    assert trigger_of_anomaly(an_anomaly(metric="current")).dedup_key != key


def test_an_anomaly_says_what_was_expected() -> None:
    message = trigger_of_anomaly(an_anomaly()).message
    assert message == "vibration is 7.2: score 0.97, expected about 1.5"


@pytest.mark.parametrize(
    ("score", "severity"),
    [
        (0.951, Severity.CRITICAL),
        (0.95, Severity.HIGH),
        (0.8, Severity.MEDIUM),
        (0.2, Severity.LOW),
    ],
)
def test_a_high_score_is_critical(score: float, severity: Severity) -> None:
    assert severity_of_score(score) is severity


def test_what_no_database_and_no_json_can_hold_is_left_out() -> None:
    trigger = trigger_of_device(a_device_alert(message="oil\x00 low\nfill up", key="o\x00il"))
    assert (trigger.title, trigger.message) == ("oil low fill up", "oil low\nfill up")
    assert "\x00" not in trigger.dedup_key
    assert trigger_of_rule(a_rule_triggered(value=float("nan"))).value is None


def test_a_title_is_short() -> None:
    assert len(trigger_of_device(a_device_alert(message="x" * 900)).title) == MOST_TITLE


def test_a_rules_firing_is_heard_once() -> None:
    trigger = trigger_of_rule(a_rule_triggered())
    heard = FiringRecord(alert_id=uuid4(), triggered_at=NOW, cleared_at=None)
    assert is_known(trigger, heard)
    assert not is_known(trigger, None)


def test_a_rules_firing_that_was_cleared_first_is_over_whatever_the_times_say() -> None:
    trigger = trigger_of_rule(a_rule_triggered(at=LATER))
    cleared = FiringRecord(alert_id=None, triggered_at=None, cleared_at=NOW)
    assert is_over(trigger, cleared)
    assert not is_known(trigger, cleared)


def test_a_devices_alarm_comes_back_after_it_was_over() -> None:
    over = FiringRecord(alert_id=uuid4(), triggered_at=NOW, cleared_at=NOW)
    again = trigger_of_device(a_device_alert(at=LATER))
    assert not is_known(again, over)
    assert not is_over(again, over)


def test_a_devices_alarm_from_before_it_was_over_is_an_old_story() -> None:
    over = FiringRecord(alert_id=uuid4(), triggered_at=NOW, cleared_at=LATER)
    late = trigger_of_device(a_device_alert(at=NOW))
    assert is_known(late, over)
