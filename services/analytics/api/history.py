"""A device's history over HTTP: its points, functions of them, and statistics."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from libs.common.errors import Invalid, NotFound, invalid
from libs.common.historian.point import Quality
from libs.common.historian.reader import Aggregate, SeriesInfo
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Duration, Moment, Out
from services.analytics import usecases
from services.analytics.api.deps import CanRead, InTransaction
from services.analytics.domain.span import Span, span_of

router = APIRouter(prefix="/api/v1/analytics", tags=["analytics"])

MOST_POINTS = 10_000
LONGEST = timedelta(days=366)


class Function(StrEnum):
    """What is made of the points."""

    RAW = "raw"
    BUCKET = "bucket"
    MOVING_AVERAGE = "moving_average"
    RATE = "rate"


class Per(StrEnum):
    """The unit of time of a rate."""

    SECOND = "s"
    MINUTE = "min"
    HOUR = "h"


PER = {
    Per.SECOND: timedelta(seconds=1),
    Per.MINUTE: timedelta(minutes=1),
    Per.HOUR: timedelta(hours=1),
}


def _plain_seconds(value: object) -> object:
    """Let "60" be a minute; pydantic reads just ISO 8601 from text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Window = Annotated[Duration, BeforeValidator(_plain_seconds)]
_DURATION = TypeAdapter(timedelta)

DeviceId = Annotated[UUID, Path()]
Metric = Annotated[str, Path(min_length=1, max_length=128)]
From = Annotated[
    Moment | None, Query(alias="from", description="The first moment; an hour before `to`.")
]
To = Annotated[
    Moment | None, Query(alias="to", description="The first moment no longer asked for; now.")
]


class QualitiesOut(Out):
    """How many points of the range have which quality. The bad ones are left out of every function."""

    good: int
    uncertain: int
    bad: int


class PointOut(Out):
    """A point of the answer. `quality` is said of raw points, `count` of averages and buckets."""

    ts: datetime
    value: Annotated[
        float | bool | str | None,
        Field(
            description="Null: no number can say it. Of a bucket: the first aggregate asked for.",
            examples=[96.2],
        ),
    ]
    quality: Annotated[str | None, Field(examples=["good"])] = None
    count: int | None = None
    values: dict[Aggregate, float] | None = None


class TimeseriesOut(Out):
    """A device's metric over a range of time."""

    device_id: UUID
    metric: Annotated[str, Field(examples=["temperature"])]
    type: Annotated[str, Field(description="number, bool or text", examples=["number"])]
    unit: Annotated[str | None, Field(examples=["degC"])]
    start: Annotated[datetime, Field(serialization_alias="from")]
    end: Annotated[datetime, Field(serialization_alias="to")]
    function: Function
    bucket_s: float | None = None
    window_s: float | None = None
    window_points: int | None = None
    per: Per | None = None
    quality: QualitiesOut
    points: list[PointOut]
    next_from: Annotated[
        datetime | None,
        Field(description="Ask from here for what `limit` cut off; null at the end."),
    ] = None


class EndOut(Out):
    """The first or last point of a range."""

    ts: datetime
    value: float


class StatisticsOut(Out):
    """What can be said of a metric's values over a range; what cannot be said is null."""

    device_id: UUID
    metric: Annotated[str, Field(examples=["temperature"])]
    type: Annotated[str, Field(examples=["number"])]
    unit: Annotated[str | None, Field(examples=["degC"])]
    start: Annotated[datetime, Field(serialization_alias="from")]
    end: Annotated[datetime, Field(serialization_alias="to")]
    quality: QualitiesOut
    count: Annotated[int, Field(description="The points that are not bad; all else is of these.")]
    mean: float | None
    median: Annotated[float | None, Field(examples=[71.3])]
    std: Annotated[float | None, Field(description="Of a sample (n - 1).")]
    variance: float | None
    min: float | None
    max: float | None
    range: float | None
    cv: Annotated[float | None, Field(description="std / |mean|")]
    percentiles: Annotated[
        dict[str, float | None], Field(examples=[{"p50": 71.2, "p95": 88.4, "p99": 95.9}])
    ]
    first: EndOut | None
    last: EndOut | None


@router.get(
    "/timeseries/{device_id}/{metric:path}",
    responses=problems(NotFound, Invalid),
    response_model_exclude_unset=True,
)
async def read_timeseries(
    device_id: DeviceId,
    metric: Metric,
    who: CanRead,
    store: InTransaction,
    now: Now,
    start: From = None,
    end: To = None,
    function: Annotated[
        Function | None, Query(description="raw, or bucket if a `bucket` is given.")
    ] = None,
    bucket: Annotated[
        Window | None,
        Query(gt=timedelta(), le=LONGEST, description="Seconds, or ISO 8601: PT5M."),
    ] = None,
    aggregate: Annotated[
        list[Aggregate] | None, Query(max_length=8, description="Of a bucket; mean.")
    ] = None,
    window: Annotated[
        str | None,
        Query(max_length=40, description="Of a moving average: points (10), or ISO 8601 (PT5M)."),
    ] = None,
    per: Annotated[Per | None, Query(description="Of a rate; s.")] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=MOST_POINTS, description="Points at most; 1000. Not of buckets.")
    ] = None,
) -> TimeseriesOut:
    """Return a metric's points over [from, to), or a function of them, oldest first."""
    span = span_of(start, end, now=now)
    if function is None:
        function = Function.RAW if bucket is None else Function.BUCKET
    _refuse_stray(
        function,
        {
            "bucket": (bucket, {Function.BUCKET}),
            "aggregate": (aggregate, {Function.BUCKET}),
            "window": (window, {Function.MOVING_AVERAGE}),
            "per": (per, {Function.RATE}),
            "limit": (limit, {Function.RAW, Function.MOVING_AVERAGE, Function.RATE}),
        },
    )
    history, most = store.history, limit or 1000
    if function is Function.BUCKET:
        if bucket is None:
            raise invalid("?bucket", "is needed for buckets: how wide are they?")
        aggregates = aggregate or [Aggregate.MEAN]
        found = await usecases.in_buckets(history, device_id, metric, span, bucket, aggregates)
        return TimeseriesOut(
            **_head(found.series, span, found.qualities),
            function=function,
            bucket_s=bucket.total_seconds(),
            points=[
                PointOut(ts=b.start, value=b.values[aggregates[0]], count=b.count, values=b.values)
                for b in found.buckets
            ],
        )
    told: dict[str, object] = {}
    if function is Function.MOVING_AVERAGE:
        over = _window(window)
        if isinstance(over, int):
            told["window_points"] = over
        else:
            told["window_s"] = over.total_seconds()
        samples = await usecases.averaged(history, device_id, metric, span, over, most)
    elif function is Function.RATE:
        told["per"] = per = per or Per.SECOND
        samples = await usecases.rates(history, device_id, metric, span, PER[per], most)
    else:
        samples = await usecases.raw(history, device_id, metric, span, most)
    return TimeseriesOut(
        **_head(samples.series, span, samples.qualities),
        **told,
        function=function,
        points=[_point(sample) for sample in samples.samples],
        next_from=samples.next_start,
    )


@router.get("/statistics/{device_id}/{metric:path}", responses=problems(NotFound, Invalid))
async def read_statistics(
    request: Request,
    device_id: DeviceId,
    metric: Metric,
    who: CanRead,
    store: InTransaction,
    now: Now,
    start: From = None,
    end: To = None,
    percentile: Annotated[
        list[Annotated[float, Field(ge=0, le=100)]] | None,
        Query(max_length=20, description="5, 25, 75 and 95 if none is given."),
    ] = None,
) -> StatisticsOut:
    """Return the statistics of a metric's values over [from, to)."""
    span = span_of(start, end, now=now)
    wanted = percentile or [5.0, 25.0, 75.0, 95.0]
    found = await usecases.summarise(
        store.history,
        device_id,
        metric,
        span,
        wanted,
        most=request.app.state.settings.statistics_points,
    )
    statistics = found.statistics
    return StatisticsOut(
        **_head(found.series, span, found.qualities),
        count=statistics.count,
        mean=statistics.mean,
        median=statistics.median,
        std=statistics.std,
        variance=statistics.variance,
        min=statistics.min,
        max=statistics.max,
        range=statistics.range,
        cv=statistics.cv,
        percentiles={
            f"{p:.10g}": value for p, value in zip(wanted, statistics.percentiles, strict=True)
        },
        first=EndOut.model_validate(found.first) if found.first else None,
        last=EndOut.model_validate(found.last) if found.last else None,
    )


def _refuse_stray(function: Function, given: dict[str, tuple[object, set[Function]]]) -> None:
    for name, (value, allowed) in given.items():
        if value is not None and function not in allowed:
            raise invalid(f"?{name}", f"is not for {function}")


def _window(text: str | None) -> int | timedelta:
    if text is None:
        raise invalid("?window", "is needed for a moving average: points, or a duration")
    try:
        points = int(text)
    except ValueError:
        try:
            window = _DURATION.validate_python(text)
        except ValidationError:
            raise invalid("?window", "is neither a number of points nor a duration") from None
        if not timedelta() < window <= LONGEST:
            raise invalid(
                "?window", f"must be longer than nothing, {LONGEST.days} days at most"
            ) from None
        return window
    if not 1 <= points <= usecases.MOST_IN_WINDOW:
        raise invalid("?window", f"must be 1 to {usecases.MOST_IN_WINDOW} points")
    return points


def _head(series: SeriesInfo, span: Span, qualities: dict[Quality, int]) -> dict[str, object]:
    return {
        "device_id": series.device_id,
        "metric": series.metric,
        "type": series.kind.name.lower(),
        "unit": series.unit,
        "start": span.start,
        "end": span.end,
        "quality": QualitiesOut(
            good=qualities[Quality.GOOD],
            uncertain=qualities[Quality.UNCERTAIN],
            bad=qualities[Quality.BAD],
        ),
    }


def _point(sample: usecases.Sample) -> PointOut:
    if sample.quality is not None:
        return PointOut(ts=sample.ts, value=sample.value, quality=sample.quality.name.lower())
    if sample.count is not None:
        return PointOut(ts=sample.ts, value=sample.value, count=sample.count)
    return PointOut(ts=sample.ts, value=sample.value)
