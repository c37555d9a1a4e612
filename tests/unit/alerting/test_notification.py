"""When a notice is tried again, and when it need not go any more."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.severity import Severity
from services.alerting.domain.alert import (
    Alert,
    How,
    State,
    acknowledge,
    investigate,
    open_alert,
    resolve,
)
from services.alerting.domain.channel import Channel, Email, Target, Webhook
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.notification import (
    LONGEST_WAIT,
    MOST_ATTEMPTS,
    SHORTEST_WAIT,
    notice_of,
    notification_id,
    reason_to_skip,
    wait_before,
)
from services.alerting.domain.trigger import SourceKind, Trigger

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
DAY = timedelta(days=1)
MAIL = Email("ana@plant.example")
HOOK = Webhook("https://hooks.example/", "whsec_x")


def an_alert(state: State = State.NEW) -> Alert:
    trigger = Trigger(
        dedup_key="rule:1",
        title="Bearing temperature",
        message="hot",
        severity=Severity.HIGH,
        source_kind=SourceKind.RULE,
        source_id=uuid4(),
        at=NOW,
    )
    alert = open_alert(trigger, alert_id=uuid4(), tenant_id=uuid4())
    match state:
        case State.NEW:
            return alert
        case State.ACKNOWLEDGED:
            return acknowledge(alert, by=uuid4(), at=NOW)
        case State.INVESTIGATING:
            return investigate(alert, by=uuid4(), at=NOW)
        case State.RESOLVED:
            return resolve(alert, how=How.CLEARED, by=None, at=NOW + timedelta(minutes=3))


def a_channel(target: Target = MAIL, *, is_enabled: bool = True) -> Channel:
    return Channel(
        id=uuid4(),
        tenant_id=uuid4(),
        name="shift",
        target=target,
        is_enabled=is_enabled,
        min_severity=Severity.MEDIUM,
        created_at=NOW,
        updated_at=NOW,
    )


def test_the_waits_grow_from_seconds_to_a_day() -> None:
    waits = [wait_before(n, asked=None, jitter=0.0) for n in range(1, MOST_ATTEMPTS + 1)]
    assert waits[:4] == [timedelta(seconds=s) for s in (5, 20, 80, 320)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_WAIT
    assert sum(waits[: MOST_ATTEMPTS - 1], timedelta()) > DAY


@given(
    attempts=st.integers(1, 1000),
    asked=st.none() | st.timedeltas(timedelta(), 3 * DAY),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_never_shorter_than_asked_for_nor_longer_than_a_day(
    attempts: int, asked: timedelta | None, jitter: float
) -> None:
    wait = wait_before(attempts, asked=asked, jitter=jitter)
    assert SHORTEST_WAIT <= wait <= LONGEST_WAIT
    assert wait >= min(asked or timedelta(), LONGEST_WAIT)


def test_those_who_failed_together_do_not_come_back_together() -> None:
    waits = {wait_before(3, asked=None, jitter=j / 10) for j in range(10)}
    assert len(waits) == 10


def test_a_notice_has_one_id_over_all_attempts_and_another_for_each_channel_and_kind() -> None:
    alert, here, there = uuid4(), uuid4(), uuid4()
    first = notification_id(alert, here, NoticeKind.OPENED)
    assert notification_id(alert, here, NoticeKind.OPENED) == first
    others = {
        notification_id(alert, there, NoticeKind.OPENED),
        notification_id(alert, here, NoticeKind.RESOLVED),
        notification_id(alert, here, NoticeKind.OPENED, 1),
        first,
    }
    assert len(others) == 4


@pytest.mark.parametrize("target", [MAIL, HOOK])
def test_a_new_alert_is_told(target: Target) -> None:
    assert reason_to_skip(NoticeKind.OPENED, a_channel(target), an_alert()) is None


@pytest.mark.parametrize("target", [MAIL, HOOK])
def test_nobody_is_told_of_the_opening_of_what_is_over(target: Target) -> None:
    alert = an_alert(State.RESOLVED)
    assert reason_to_skip(NoticeKind.OPENED, a_channel(target), alert)
    assert reason_to_skip(NoticeKind.RESOLVED, a_channel(target), alert) is None


@pytest.mark.parametrize("state", [State.ACKNOWLEDGED, State.INVESTIGATING])
def test_people_need_not_hear_of_what_someone_has_taken_on_but_systems_must(state: State) -> None:
    reason = reason_to_skip(NoticeKind.OPENED, a_channel(MAIL), an_alert(state))
    assert reason == f"the alert was {state} before it could be told"
    assert reason_to_skip(NoticeKind.OPENED, a_channel(HOOK), an_alert(state)) is None


def test_nothing_goes_to_a_channel_that_is_off_or_gone() -> None:
    assert reason_to_skip(NoticeKind.OPENED, None, an_alert()) == "the channel was removed"
    off = a_channel(is_enabled=False)
    assert reason_to_skip(NoticeKind.RESOLVED, off, an_alert()) == "the channel is disabled"


def test_a_channel_carries_what_is_severe_enough() -> None:
    assert a_channel().carries(Severity.MEDIUM)
    assert not a_channel().carries(Severity.LOW)
    assert not a_channel(is_enabled=False).carries(Severity.CRITICAL)


def test_a_notice_tells_when_its_own_thing_happened() -> None:
    alert = replace(an_alert(State.RESOLVED), device_name="pump-2")
    opened = notice_of(alert, notification_id=uuid4(), kind=NoticeKind.OPENED, actor=None)
    resolved = notice_of(alert, notification_id=uuid4(), kind=NoticeKind.RESOLVED, actor="Ana")
    assert (opened.at, resolved.at) == (NOW, NOW + timedelta(minutes=3))
    assert (resolved.rule_name, resolved.device_name) == ("Bearing temperature", "pump-2")
    assert resolved.actor == "Ana"


def test_a_secret_does_not_show_where_a_channel_is_printed() -> None:
    assert "whsec" not in repr(a_channel(HOOK))
