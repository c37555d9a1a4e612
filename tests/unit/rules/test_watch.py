from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import numpy as np

from libs.common.severity import Severity
from services.rules.domain.rule import Definition, Kind, Rule
from services.rules.domain.threshold import Operator, Threshold
from services.rules.domain.watch import Candidate, SeriesKey, Watch

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATENESS = timedelta(minutes=5)


def a_rule(tenant_id: UUID, device_id: UUID, metric: str = "temp") -> Rule:
    return Rule(
        tenant_id=tenant_id,
        id=uuid4(),
        definition=Definition(
            name="too hot",
            kind=Kind.THRESHOLD,
            device_id=device_id,
            metric=metric,
            condition=Threshold(Operator.GT, 90.0),
            hold=timedelta(),
            severity=Severity.HIGH,
        ),
        enabled=True,
        version=1,
        created_at=NOON,
        updated_at=NOON,
    )


def candidates(
    watch: Watch, *points: tuple[int, int, float], quality: Sequence[int] | None = None
) -> list[Candidate]:
    return watch.candidates(
        np.array([s for s, _, _ in points], dtype=np.int32),
        np.array([t for _, t, _ in points], dtype=np.int64),
        np.array([v for _, _, v in points], dtype=np.float64),
        np.array(quality or [0] * len(points), dtype=np.uint8),
        np.array([t for _, t, _ in points], dtype=np.int64),
    )


def undescribed(watch: Watch, *series: int) -> list[int]:
    return watch.undescribed(np.array(series, dtype=np.int32))


def test_only_the_points_that_a_rule_waits_for_are_picked_and_put_in_order() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    rule = a_rule(tenant, device)
    watch.put(rule)
    assert undescribed(watch, 7, 8, 7) == [7, 8]
    watch.describe(
        [7, 8], [(7, SeriesKey(tenant, device, "temp")), (8, SeriesKey(tenant, device, "rpm"))]
    )
    assert undescribed(watch, 7, 8) == []
    [found] = candidates(watch, (8, 1, 5.0), (7, 1, 50.0), (7, 3, 70.0), (7, 2, 60.0))
    assert found.watched.rule is rule
    assert (found.points.ts, found.points.values) == ([1, 2, 3], [50.0, 60.0, 70.0])


def test_bad_quality_and_what_is_no_number_concern_no_rule() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    watch.put(a_rule(tenant, device))
    watch.describe([7], [(7, SeriesKey(tenant, device, "temp"))])
    points = [(7, 1, 1.0), (7, 2, 2.0), (7, 3, float("nan")), (7, 4, float("inf")), (7, 5, 5.0)]
    [found] = candidates(watch, *points, quality=[0, 2, 0, 0, 1])
    assert found.points.ts == [1, 5]


def test_a_rule_that_comes_after_its_series_was_seen_gets_its_points() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    key = SeriesKey(tenant, device, "temp")
    watch.describe([5000], [(5000, key)])
    assert undescribed(watch, 5000) == []
    watch.put(a_rule(tenant, device))
    assert undescribed(watch, 5000) == [5000]
    watch.describe([5000], [(5000, key)])
    assert len(candidates(watch, (5000, 1, 1.0))) == 1


def test_a_rule_on_someone_elses_device_gets_nothing() -> None:
    watch, device = Watch(LATENESS), uuid4()
    watch.put(a_rule(uuid4(), device))
    watch.describe([7], [(7, SeriesKey(uuid4(), device, "temp"))])
    assert candidates(watch, (7, 1, 1.0)) == []


def test_a_dropped_rule_gets_no_more_points_and_leaves_its_neighbour() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    one, other = a_rule(tenant, device), a_rule(tenant, device)
    watch.put(one)
    watch.put(other)
    watch.describe([7], [(7, SeriesKey(tenant, device, "temp"))])
    assert len(candidates(watch, (7, 1, 1.0))) == 2
    watch.drop(one.id)
    assert [c.watched.rule for c in candidates(watch, (7, 1, 1.0))] == [other]
    watch.drop(other.id)
    assert candidates(watch, (7, 1, 1.0)) == []
    watch.drop(other.id)


def test_a_newer_version_takes_the_place_of_the_older_with_a_fresh_memory() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    rule = a_rule(tenant, device)
    watch.put(rule)
    watch.describe([7], [(7, SeriesKey(tenant, device, "temp"))])
    [before] = candidates(watch, (7, 1, 1.0))
    watch.put(replace(rule, version=2))
    [after] = candidates(watch, (7, 1, 1.0))
    assert after.watched is not before.watched
    assert watch.versions() == {rule.id: 2}


def test_a_rule_that_is_turned_to_another_metric_leaves_the_old_one() -> None:
    watch, tenant, device = Watch(LATENESS), uuid4(), uuid4()
    temp, rpm = SeriesKey(tenant, device, "temp"), SeriesKey(tenant, device, "rpm")
    rule = a_rule(tenant, device)
    watch.put(rule)
    watch.describe([7, 8], [(7, temp), (8, rpm)])
    watch.put(replace(rule, definition=replace(rule.definition, metric="rpm"), version=2))
    assert undescribed(watch, 7, 8) == [8]
    watch.describe([8], [(8, rpm)])
    [found] = candidates(watch, (7, 1, 1.0), (8, 2, 2.0))
    assert found.points.values == [2.0]


def test_a_series_that_nobody_knows_is_asked_for_again_only_after_a_while() -> None:
    watch = Watch(LATENESS)
    huge = 2**31 - 1
    assert undescribed(watch, huge, -3, 0) == [-3, 0, huge]
    watch.describe([-3, 0, huge], [])
    assert undescribed(watch, huge, -3, 0) == []
    assert candidates(watch, (huge, 1, 1.0), (-3, 1, 1.0)) == []
    watch.forget_absent()
    assert undescribed(watch, huge) == [huge]
