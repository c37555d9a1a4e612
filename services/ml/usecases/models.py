"""What people do with models; and what becomes of those whose device or tenant is no more."""

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import numpy as np

from libs.common.db.erasure import erase_tenant
from libs.common.errors import Conflict, Invalid, invalid
from libs.common.events.ml import ModelChanged
from libs.common.historian.point import Kind
from libs.common.historian.reader import SeriesInfo, as_datetime
from libs.common.places import whole_tenant
from services.ml.domain.model import Model, ModelType
from services.ml.domain.robust_zscore import RobustZScore, learn, score_of
from services.ml.store.store import MlStore


@dataclass(frozen=True, slots=True)
class Span:
    """The times [start, end), in UTC."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model as a person asks for it."""

    name: str
    type: ModelType
    device_id: UUID
    metric: str
    threshold: float
    min_points: int
    calm_points: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a model makes of one value; `ts` is None for a value that has no time."""

    ts: datetime | None
    value: float
    z: float
    score: float
    is_anomaly: bool


async def create(
    store: MlStore,
    plan: Plan,
    span: Span,
    *,
    model_id: UUID,
    most: int,
    most_models: int,
    now: datetime,
) -> Model:
    """Train a model and put it to work.

    Raises NotFound without such a series, Conflict if the name is taken, there are too few points
    or `most_models` already, Invalid if nothing can be learnt from them or there are more than
    `most`.
    """
    async with whole_tenant(store.session):
        there = await store.models.count()
    if there >= most_models:
        raise Conflict(f"a tenant has {most_models} models at most")
    series = await store.history.find(plan.device_id, plan.metric)
    model = Model(
        tenant_id=store.tenant_id,
        id=model_id,
        name=plan.name,
        type=plan.type,
        device_id=plan.device_id,
        metric=plan.metric,
        series=series.id,
        threshold=plan.threshold,
        min_points=plan.min_points,
        calm_points=plan.calm_points,
        learnt=await _learn(store, series, span, plan.min_points, most),
        trained_from=span.start,
        trained_to=span.end,
        trained_at=now,
        version=1,
        created_at=now,
    )
    await store.models.add(model)
    _say_changed(store, model, "created", now)
    return model


async def train(store: MlStore, model_id: UUID, span: Span, *, most: int, now: datetime) -> Model:
    """Train a model anew, as `create`; an excursion under way ends. Raises NotFound."""
    seen = await store.models.get(model_id)
    series = await store.history.find(seen.device_id, seen.metric)
    # Before the lock, so that points do not wait for it.
    learnt = await _learn(store, series, span, seen.min_points, most)
    model = await store.models.get(model_id, lock=True)
    trained = replace(
        model,
        learnt=learnt,
        trained_from=span.start,
        trained_to=span.end,
        trained_at=now,
        version=model.version + 1,
    )
    await store.models.update(trained)
    await store.anomalies.end(model_id, now)
    _say_changed(store, trained, "trained", now)
    return trained


async def delete(store: MlStore, model_id: UUID, *, now: datetime) -> None:
    """Delete a model; what it has found stays. Raises NotFound."""
    await _delete(store, await store.models.get(model_id, lock=True), now)


async def drop_device(store: MlStore, device_id: UUID, *, now: datetime) -> None:
    """Delete the models of a device that is no more."""
    for model in await store.models.of_device(device_id):
        await _delete(store, model, now)


async def drop_tenant(store: MlStore, *, now: datetime) -> None:
    """Erase all that is kept of a tenant that is no more, anomalies too."""
    # Locked first, so that none of them is just finding another anomaly.
    for model in await store.models.all():
        _say_changed(store, model, "deleted", now)
    await erase_tenant(store, "ml")


async def score_span(
    store: MlStore, model_id: UUID, span: Span, limit: int
) -> tuple[Model, list[Judgement], datetime | None]:
    """Return what a model makes of its device's past; and where to go on, beyond `limit` points.

    Raises NotFound.
    """
    model = await store.models.get(model_id)
    series = await store.history.find(model.device_id, model.metric)
    points = await store.history.points(series, span.start, span.end, limit=limit + 1)
    times: list[datetime | None] = [as_datetime(ts) for ts in points.ts.tolist()]
    judgements = _judge(model, times, points.values.tolist())
    return model, judgements[:limit], times[limit] if len(times) > limit else None


async def score_values(
    store: MlStore, model_id: UUID, values: list[float]
) -> tuple[Model, list[Judgement]]:
    """Return what a model makes of these values. Raises NotFound."""
    model = await store.models.get(model_id)
    return model, _judge(model, [None] * len(values), values)


def _judge(model: Model, times: list[datetime | None], values: list[float]) -> list[Judgement]:
    scores = model.learnt.z(np.array(values, dtype=np.float64)).tolist()
    return [
        Judgement(ts, value, z, score_of(z, model.threshold), z > model.threshold)
        for ts, value, z in zip(times, values, scores, strict=True)
    ]


async def _learn(
    store: MlStore, series: SeriesInfo, span: Span, min_points: int, most: int
) -> RobustZScore:
    if series.kind is Kind.TEXT:
        raise Invalid("the metric holds text, which this type of model cannot learn from")
    points = await store.history.all_points(series, span.start, span.end, most=most)
    if points is None:
        raise invalid("#/train", f"that time has more than {most} points; shorten it")
    return await asyncio.to_thread(learn, points.values, min_points=min_points)


async def _delete(store: MlStore, model: Model, now: datetime) -> None:
    await store.anomalies.end(model.id, now)
    await store.models.remove(model.id)
    _say_changed(store, model, "deleted", now)


def _say_changed(store: MlStore, model: Model, change: str, now: datetime) -> None:
    store.emit(ModelChanged(tenant_id=store.tenant_id, at=now, model_id=model.id, change=change))
