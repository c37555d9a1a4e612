"""Which points concern a model."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import numpy as np

from services.ml.domain.model import Model, ModelType
from services.ml.domain.robust_zscore import RobustZScore
from services.ml.domain.watch import Watch

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATENESS = timedelta(minutes=5)


def a_model(series: int, *, model_id: UUID | None = None, version: int = 1) -> Model:
    return Model(
        tenant_id=uuid4(),
        id=model_id or uuid4(),
        name="vibration",
        type=ModelType.ROBUST_ZSCORE,
        device_id=uuid4(),
        metric="vibration",
        series=series,
        threshold=3.5,
        min_points=30,
        calm_points=5,
        learnt=RobustZScore(0, 1, 30),
        trained_from=NOON,
        trained_to=NOON,
        trained_at=NOON,
        version=version,
        created_at=NOON,
    )


def seen(watch: Watch, series: list[int], *, quality: int = 0) -> list[tuple[UUID, list[int]]]:
    count = len(series)
    found = watch.candidates(
        np.array(series, dtype=np.int32),
        np.arange(count, dtype=np.int64),
        np.arange(count, dtype=np.float64),
        np.full(count, quality, dtype=np.uint8),
        np.arange(count, dtype=np.int64),
    )
    return [(c.watched.model.id, c.ts.tolist()) for c in found]


def test_each_model_gets_the_points_of_its_series_in_order() -> None:
    watch, far, near = Watch(LATENESS), a_model(1_000_000), a_model(7)
    watch.put(far)
    watch.put(near)
    series = [7, 1_000_000, 8, 7, 2_000_000, 1_000_000, 0]
    assert seen(watch, series) == [(near.id, [0, 3]), (far.id, [1, 5])]


def test_two_models_may_watch_one_series_until_both_are_gone() -> None:
    watch, one, two = Watch(LATENESS), a_model(7), a_model(7)
    watch.put(one)
    watch.put(two)
    assert len(seen(watch, [7])) == 2
    watch.drop(one.id)
    assert seen(watch, [7]) == [(two.id, [0])]
    watch.drop(two.id)
    watch.drop(two.id)
    assert seen(watch, [7]) == []


def test_a_newer_version_takes_the_place_of_the_older() -> None:
    watch, old = Watch(LATENESS), a_model(7)
    watch.put(old)
    watch.put(a_model(9, model_id=old.id, version=2))
    assert watch.versions() == {old.id: 2}
    assert seen(watch, [7, 9]) == [(old.id, [1])]


def test_bad_points_concern_no_model() -> None:
    watch = Watch(LATENESS)
    watch.put(a_model(7))
    assert seen(watch, [7, 7], quality=2) == []
    assert len(seen(watch, [7, 7], quality=1)) == 1
