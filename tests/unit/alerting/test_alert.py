"""Which state leads to which, and by whom."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from libs.common.errors import Conflict
from libs.common.severity import Severity
from services.alerting.domain.alert import (
    Alert,
    How,
    State,
    acknowledge,
    fold,
    investigate,
    open_alert,
    resolve,
)
from services.alerting.domain.trigger import SourceKind, Trigger

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
ANA, BEN = uuid4(), uuid4()

Action = Callable[[Alert, UUID], Alert]


def a_trigger(**changes: object) -> Trigger:
    trigger = Trigger(
        dedup_key="rule:1",
        title="Bearing runs hot",
        message="temperature is 96.4: above 90",
        severity=Severity.HIGH,
        source_kind=SourceKind.RULE,
        source_id=uuid4(),
        at=NOW,
        value=96.4,
    )
    return replace(trigger, **changes)  # type: ignore[arg-type]  # the fields' own types


def an_alert(state: State = State.NEW, by: UUID = ANA) -> Alert:
    alert = open_alert(a_trigger(), alert_id=uuid4(), tenant_id=uuid4())
    match state:
        case State.NEW:
            return alert
        case State.ACKNOWLEDGED:
            return acknowledge(alert, by=by, at=NOW)
        case State.INVESTIGATING:
            return investigate(alert, by=by, at=NOW)
        case State.RESOLVED:
            return resolve(alert, how=How.BY_HAND, by=by, at=NOW)


ACTIONS: dict[str, Action] = {
    "acknowledge": lambda alert, by: acknowledge(alert, by=by, at=LATER),
    "investigate": lambda alert, by: investigate(alert, by=by, at=LATER),
    "resolve": lambda alert, by: resolve(alert, how=How.BY_HAND, by=by, at=LATER),
}

ALLOWED = {
    (State.NEW, "acknowledge"): State.ACKNOWLEDGED,
    (State.NEW, "investigate"): State.INVESTIGATING,
    (State.NEW, "resolve"): State.RESOLVED,
    (State.ACKNOWLEDGED, "investigate"): State.INVESTIGATING,
    (State.ACKNOWLEDGED, "resolve"): State.RESOLVED,
    (State.INVESTIGATING, "investigate"): State.INVESTIGATING,
    (State.INVESTIGATING, "resolve"): State.RESOLVED,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("action", ACTIONS)
def test_a_state_leads_where_it_may_and_nowhere_else(state: State, action: str) -> None:
    alert = an_alert(state)
    if (state, action) in ALLOWED:
        assert ACTIONS[action](alert, BEN).state is ALLOWED[state, action]
    else:
        with pytest.raises(Conflict, match=state.value):
            ACTIONS[action](alert, BEN)


def test_what_one_did_already_is_no_fault_and_changes_nothing() -> None:
    taken = an_alert(State.ACKNOWLEDGED, by=ANA)
    assert acknowledge(taken, by=ANA, at=LATER) is taken
    looked_at = an_alert(State.INVESTIGATING, by=ANA)
    assert investigate(looked_at, by=BEN, at=LATER) is looked_at


def test_who_investigates_a_new_alert_has_acknowledged_it() -> None:
    alert = investigate(an_alert(), by=ANA, at=LATER)
    assert (alert.acknowledged_by, alert.acknowledged_at) == (ANA, LATER)


def test_who_investigates_for_another_does_not_take_the_acknowledgement() -> None:
    alert = investigate(an_alert(State.ACKNOWLEDGED, by=ANA), by=BEN, at=LATER)
    assert (alert.acknowledged_by, alert.acknowledged_at) == (ANA, NOW)


def test_a_resolved_alert_says_who_when_and_how() -> None:
    alert = resolve(an_alert(State.ACKNOWLEDGED), how=How.CLEARED, by=None, at=LATER)
    assert (alert.resolved_how, alert.resolved_by, alert.resolved_at) == (How.CLEARED, None, LATER)


def test_every_change_makes_a_new_version() -> None:
    alert = an_alert()
    versions = [alert.version]
    changes: list[Callable[[Alert], Alert]] = [
        lambda a: fold(a, a_trigger()),
        lambda a: acknowledge(a, by=ANA, at=NOW),
        lambda a: investigate(a, by=ANA, at=NOW),
        lambda a: resolve(a, how=How.BY_HAND, by=ANA, at=NOW),
    ]
    for change in changes:
        alert = change(alert)
        versions.append(alert.version)
    assert versions == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("state", [State.NEW, State.ACKNOWLEDGED, State.INVESTIGATING])
def test_one_more_trigger_counts_and_never_undoes_what_people_did(state: State) -> None:
    alert = an_alert(state)
    folded = fold(alert, a_trigger(at=LATER, value=99.0, message="now 99"))
    assert folded.state is state
    assert folded.acknowledged_by == alert.acknowledged_by
    assert (folded.count, folded.value, folded.message) == (2, 99.0, "now 99")
    assert (folded.opened_at, folded.last_seen_at) == (NOW, LATER)


def test_severity_rises_and_never_falls() -> None:
    alert = an_alert()
    assert fold(alert, a_trigger(severity=Severity.CRITICAL)).severity is Severity.CRITICAL
    assert fold(alert, a_trigger(severity=Severity.LOW)).severity is Severity.HIGH


def test_a_trigger_that_came_late_counts_but_does_not_overwrite_what_is_newer() -> None:
    alert = fold(an_alert(), a_trigger(at=LATER, value=99.0))
    late = fold(alert, a_trigger(at=NOW, value=91.0))
    assert (late.count, late.value, late.last_seen_at) == (3, 99.0, LATER)
