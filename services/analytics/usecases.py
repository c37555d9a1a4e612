"""What people ask of a device's history."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isnan
from uuid import UUID

from libs.common.errors import Invalid, invalid
from libs.common.historian.point import Kind, Quality
from libs.common.historian.reader import Aggregate, Bucket, Points, SeriesInfo, as_datetime
from services.analytics.domain.functions import moving_average, rate_of_change
from services.analytics.domain.span import FIRST, Span
from services.analytics.domain.statistics import Statistics, describe, finite
from services.analytics.store.history import History

MOST_BUCKETS = 10_000
MOST_IN_WINDOW = 10_000
LOOK_BACK = timedelta(days=31)
"""How far before the span points are looked for that a function of its first points needs."""

Value = float | bool | str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One point of an answer; `count` is over how many points it was computed."""

    ts: datetime
    value: Value
    quality: Quality | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Points of a span, and where the next ones begin if there are more than were asked for."""

    series: SeriesInfo
    qualities: dict[Quality, int]
    samples: list[Sample]
    next_start: datetime | None


@dataclass(frozen=True, slots=True)
class Buckets:
    """The buckets of a span that have points."""

    series: SeriesInfo
    qualities: dict[Quality, int]
    buckets: list[Bucket]


@dataclass(frozen=True, slots=True)
class Summary:
    """The statistics of a span; the first and last are those of the points that count."""

    series: SeriesInfo
    qualities: dict[Quality, int]
    statistics: Statistics
    first: Sample | None
    last: Sample | None


async def raw(history: History, device_id: UUID, metric: str, span: Span, limit: int) -> Samples:
    """Return the points as they are, of every quality. Raises NotFound."""
    series = await history.find(device_id, metric)
    if series.kind is Kind.TEXT:
        texts = await history.texts(series, span.start, span.end, limit=limit + 1)
        samples = [Sample(text.ts, text.value, text.quality) for text in texts]
    else:
        points = await history.points(series, span.start, span.end, limit=limit + 1)
        is_bool = series.kind is Kind.BOOL
        samples = [
            # A bad point may have no value: NaN, which is neither true nor false.
            Sample(
                as_datetime(ts),
                bool(value) if is_bool and not isnan(value) else value,
                Quality(quality),
            )
            for ts, value, quality in zip(
                points.ts.tolist(), points.values.tolist(), points.quality.tolist(), strict=True
            )
        ]
    return await _samples(history, series, span, samples, limit)


async def in_buckets(
    history: History,
    device_id: UUID,
    metric: str,
    span: Span,
    width: timedelta,
    aggregates: Sequence[Aggregate],
) -> Buckets:
    """Return the points summed up in buckets. Raises NotFound, Invalid if there are too many."""
    if span.buckets(width) > MOST_BUCKETS:
        raise invalid("?bucket", f"the range has more than {MOST_BUCKETS} of them; widen them")
    series = await _find_numbers(history, device_id, metric)
    buckets = await history.buckets(series, span.start, span.end, width, aggregates)
    return Buckets(series, await history.qualities(series, span.start, span.end), buckets)


async def averaged(
    history: History,
    device_id: UUID,
    metric: str,
    span: Span,
    window: int | timedelta,
    limit: int,
) -> Samples:
    """Return the moving average over so many points, or so much time. Raises NotFound, Invalid.

    The windows of the first points reach back before the span.
    """
    series = await _find_numbers(history, device_id, metric)
    if isinstance(window, int):
        begin = max(span.start - LOOK_BACK, FIRST)
        before = await history.newest_usable(series, begin, span.start, limit=window - 1)
    else:
        begin = max(span.start - window, FIRST)
        before = await history.newest_usable(series, begin, span.start, limit=MOST_IN_WINDOW + 1)
        if len(before) > MOST_IN_WINDOW:
            raise invalid("?window", f"holds more than {MOST_IN_WINDOW} points; shorten it")
    points = await history.points(series, span.start, span.end, limit=limit + 1, usable=True)
    both = Points.join([before, points])
    means, counts = await asyncio.to_thread(moving_average, both.ts, both.values, window)
    samples = [
        Sample(as_datetime(ts), finite(mean), count=count)
        for ts, mean, count in zip(
            points.ts.tolist(),
            means[len(before) :].tolist(),
            counts[len(before) :].tolist(),
            strict=True,
        )
    ]
    return await _samples(history, series, span, samples, limit)


async def rates(
    history: History, device_id: UUID, metric: str, span: Span, per: timedelta, limit: int
) -> Samples:
    """Return for each point the rate of change since the one before. Raises NotFound, Invalid."""
    series = await _find_numbers(history, device_id, metric)
    begin = max(span.start - LOOK_BACK, FIRST)
    before = await history.newest_usable(series, begin, span.start, limit=1)
    points = await history.points(series, span.start, span.end, limit=limit + 1, usable=True)
    both = Points.join([before, points])
    changes = rate_of_change(both.ts, both.values, per)
    samples = [
        Sample(as_datetime(ts), finite(change))
        for ts, change in zip(both.ts[1:].tolist(), changes.tolist(), strict=True)
    ]
    return await _samples(history, series, span, samples, limit)


async def summarise(
    history: History,
    device_id: UUID,
    metric: str,
    span: Span,
    percentiles: Sequence[float],
    *,
    most: int,
) -> Summary:
    """Return the span's statistics. Raises NotFound, Invalid if it has more than `most` points."""
    series = await _find_numbers(history, device_id, metric)
    points = await history.usable(series, span.start, span.end, most=most)
    if points is None:
        raise invalid("?from", f"the range has more than {most} points; shorten it")
    statistics = await asyncio.to_thread(describe, points.values, percentiles)
    ends = [
        Sample(as_datetime(int(points.ts[i])), float(points.values[i]), Quality(points.quality[i]))
        for i in (0, -1)
        if len(points)
    ]
    qualities = await history.qualities(series, span.start, span.end)
    return Summary(series, qualities, statistics, *(ends or (None, None)))


async def _find_numbers(history: History, device_id: UUID, metric: str) -> SeriesInfo:
    series = await history.find(device_id, metric)
    if series.kind is Kind.TEXT:
        raise Invalid("the metric holds text; it can be read raw, and not computed with")
    return series


async def _samples(
    history: History, series: SeriesInfo, span: Span, samples: list[Sample], limit: int
) -> Samples:
    return Samples(
        series,
        await history.qualities(series, span.start, span.end),
        samples[:limit],
        next_start=samples[limit].ts if len(samples) > limit else None,
    )
