"""Models over HTTP: train them, look at them, ask them."""

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from libs.common.errors import Conflict, Invalid, Malformed, NotFound, invalid
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Duration, Moment, Out
from services.ml.api.deps import CanRead, CanWrite, InTransaction
from services.ml.domain.model import Model, ModelType
from services.ml.domain.robust_zscore import USUAL_THRESHOLD
from services.ml.usecases import models as usecases
from services.ml.usecases.models import Judgement, Plan, Span

router = APIRouter(prefix="/api/v1/ml/models", tags=["ml"], route_class=IdempotentRoute)

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(2200, 1, 1, tzinfo=UTC)
USUAL = timedelta(hours=24)
LONGEST = timedelta(days=400)
MOST_SCORED = 10_000
LARGEST = 1e300

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f]+$",
        examples=["Temperature of press-7"],
    ),
]
Metric = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]+$", examples=["temperature"])
]
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]


class SpanBody(Body):
    """A part of the past: `from` and `to` (now), or the `last` so much of it."""

    start: Annotated[Moment | None, Field(alias="from")] = None
    end: Annotated[Moment | None, Field(alias="to")] = None
    last: Annotated[
        Duration | None,
        Field(gt=timedelta(), le=LONGEST, description="Seconds or ISO 8601: PT24H."),
    ] = None

    def span(self, now: datetime, at: str) -> Span:
        """Return the span. Raises Invalid, naming the field below `at`, if it is none."""
        if self.last is not None and (self.start is not None or self.end is not None):
            raise invalid(f"{at}/last", "stands alone, without `from` and `to`")
        if self.start is None:
            if self.end is not None:
                raise invalid(f"{at}/from", "is needed beside `to`")
            return Span(now - (self.last or USUAL), now)
        end = now if self.end is None else self.end
        for name, moment in (("from", self.start), ("to", end)):
            if not FIRST <= moment < END:
                raise invalid(f"{at}/{name}", "must lie in the years 1970 to 2199")
        if self.start >= end:
            raise invalid(f"{at}/from", "must lie before `to`")
        if end - self.start > LONGEST:
            raise invalid(f"{at}/from", f"must lie {LONGEST.days} days before `to` at most")
        return Span(self.start, end)


class ModelBody(Body):
    """A model to be trained."""

    name: Name
    type: ModelType = ModelType.ROBUST_ZSCORE
    device_id: UUID
    metric: Metric
    train: Annotated[SpanBody, Field(description="What to learn from; the last 24 hours.")] = (
        SpanBody()
    )
    threshold: Annotated[
        float,
        Field(
            ge=0.5, le=1000, description="How many typical deviations (1.4826 MAD) are too many."
        ),
    ] = USUAL_THRESHOLD
    min_points: Annotated[
        int, Field(ge=10, le=100_000, description="Fewer good points are too few to learn from.")
    ] = 30
    calm_points: Annotated[
        int, Field(ge=1, le=10_000, description="So many usual points in a row end an excursion.")
    ] = 5


class TrainBody(Body):
    """What to train a model from."""

    train: SpanBody = SpanBody()


class ScoreBody(Body):
    """What to score: values, or the model's own device over a time."""

    values: Annotated[list[Number] | None, Field(min_length=1, max_length=MOST_SCORED)] = None
    start: Annotated[Moment | None, Field(alias="from")] = None
    end: Annotated[Moment | None, Field(alias="to")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_SCORED)] = 1000


class ModelOut(Out):
    """A model. Its values are in the metric's own unit."""

    id: UUID
    name: Annotated[str, Field(examples=["Temperature of press-7"])]
    type: ModelType
    device_id: UUID
    metric: Annotated[str, Field(examples=["temperature"])]
    threshold: Annotated[float, Field(examples=[3.5])]
    min_points: int
    calm_points: int
    median: Annotated[float, Field(examples=[71.3])]
    mad: Annotated[
        float, Field(description="Median absolute deviation, not scaled.", examples=[1.9])
    ]
    n: Annotated[int, Field(description="From how many points it has learnt.", examples=[86400])]
    normal_min: Annotated[float, Field(examples=[61.4])]
    normal_max: Annotated[
        float, Field(description="Below or above is an anomaly.", examples=[81.2])
    ]
    version: Annotated[int, Field(description="How often it was trained.")]
    trained_from: datetime
    trained_to: datetime
    trained_at: datetime
    created_at: datetime


class ScoreOut(Out):
    """What a model makes of a value."""

    ts: datetime | None
    value: Annotated[float, Field(examples=[118.4])]
    z: Annotated[float | None, Field(description="Typical deviations from the median; null: beyond measure.", examples=[9.2])]  # fmt: skip
    score: Annotated[float, Field(description="0 to 1; 0.5 at the threshold.", examples=[0.93])]
    is_anomaly: bool


class ScoresOut(Out):
    """What a model makes of values. Nothing of it is kept."""

    model_id: UUID
    version: int
    expected: Annotated[float, Field(examples=[71.3])]
    threshold: Annotated[float, Field(examples=[3.5])]
    anomalies: Annotated[int, Field(description="How many of the items are.")]
    items: list[ScoreOut]
    next_from: Annotated[
        datetime | None,
        Field(description="Ask from here for what `limit` cut off; null at the end."),
    ]


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(NotFound, Conflict, Invalid))
async def create_model(
    request: Request, body: ModelBody, who: CanWrite, store: InTransaction, now: Now
) -> ModelOut:
    """Train a model from a device's past. It scores the points that arrive from now on."""
    plan = Plan(
        name=body.name,
        type=body.type,
        device_id=body.device_id,
        metric=body.metric,
        threshold=body.threshold,
        min_points=body.min_points,
        calm_points=body.calm_points,
    )
    model = await usecases.create(
        store,
        plan,
        body.train.span(now, "#/train"),
        model_id=uuid4(),
        most=request.app.state.settings.training_points,
        most_models=request.app.state.settings.models_per_tenant,
        now=now,
    )
    return _to_out(model)


@router.get("", responses=problems(Malformed))
async def list_models(
    who: CanRead,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    device_id: Annotated[UUID | None, Query()] = None,
) -> Page[ModelOut]:
    """List the models, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    models = await store.models.page(limit + 1, after, device_id)
    more = len(models) > limit
    models = models[:limit]
    return Page(
        items=[_to_out(model) for model in models],
        next_cursor=encode_cursor(_Position(models[-1].created_at, models[-1].id))
        if more
        else None,
    )


@router.get("/{model_id}", responses=problems(NotFound))
async def get_model(model_id: UUID, who: CanRead, store: InTransaction) -> ModelOut:
    """Return one model."""
    return _to_out(await store.models.get(model_id))


@router.delete("/{model_id}", status_code=204, responses=problems(NotFound))
async def delete_model(model_id: UUID, who: CanWrite, store: InTransaction, now: Now) -> Response:
    """Delete a model. The anomalies it has found stay."""
    await usecases.delete(store, model_id, now=now)
    return Response(status_code=204)


@router.post("/{model_id}/train", responses=problems(NotFound, Conflict, Invalid))
async def train_model(
    request: Request,
    model_id: UUID,
    body: TrainBody,
    who: CanWrite,
    store: InTransaction,
    now: Now,
) -> ModelOut:
    """Train a model anew. If nothing can be learnt, it stays as it was."""
    model = await usecases.train(
        store,
        model_id,
        body.train.span(now, "#/train"),
        most=request.app.state.settings.training_points,
        now=now,
    )
    return _to_out(model)


@router.post("/{model_id}/score", responses=problems(NotFound, Invalid))
async def score(
    model_id: UUID, body: ScoreBody, who: CanRead, store: InTransaction, now: Now
) -> ScoresOut:
    """Ask a model what it makes of values, or of its device's past."""
    next_from = None
    if body.values is not None:
        if body.start is not None or body.end is not None:
            raise invalid("#/values", "stand alone, without `from` and `to`")
        model, judgements = await usecases.score_values(store, model_id, body.values)
    else:
        if body.start is None:
            raise invalid("#/values", "give `values`, or `from` and `to`")
        span = SpanBody.model_validate({"from": body.start, "to": body.end}).span(now, "#")
        model, judgements, next_from = await usecases.score_span(store, model_id, span, body.limit)
    return ScoresOut(
        model_id=model.id,
        version=model.version,
        expected=model.learnt.median,
        threshold=model.threshold,
        anomalies=sum(judgement.is_anomaly for judgement in judgements),
        items=[_to_score(judgement) for judgement in judgements],
        next_from=next_from,
    )


def _to_score(judgement: Judgement) -> ScoreOut:
    return ScoreOut(
        ts=judgement.ts,
        value=judgement.value,
        z=judgement.z if math.isfinite(judgement.z) else None,
        score=judgement.score,
        is_anomaly=judgement.is_anomaly,
    )


def _to_out(model: Model) -> ModelOut:
    low, high = model.learnt.normal_range(model.threshold)
    return ModelOut(
        id=model.id,
        name=model.name,
        type=model.type,
        device_id=model.device_id,
        metric=model.metric,
        threshold=model.threshold,
        min_points=model.min_points,
        calm_points=model.calm_points,
        median=model.learnt.median,
        mad=model.learnt.mad,
        n=model.learnt.n,
        normal_min=low,
        normal_max=high,
        version=model.version,
        trained_from=model.trained_from,
        trained_to=model.trained_to,
        trained_at=model.trained_at,
        created_at=model.created_at,
    )
