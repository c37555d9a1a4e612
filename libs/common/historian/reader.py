"""Reading points: for one tenant, within the caller's transaction, from the hot tier.

Row-level security keeps the tenants apart, and every statement names its tenant all the same.
Ranges are half-open, [start, end), and both ends are given to PostgreSQL, so that it opens the
partitions of those days alone. Points come as columns, by binary COPY: a row costs 30 bytes on the
wire and no Python object.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Invalid, NotFound
from libs.common.historian.point import Kind, Quality

_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("ts_length", ">i4"),
        ("ts", ">i8"),
        ("value_length", ">i4"),
        ("value", ">f8"),
        ("quality_length", ">i4"),
        ("quality", ">i2"),
    ]
)
"""A row (ts, value, quality) in PostgreSQL's binary COPY format."""

_HEADER_BYTES, _TRAILER_BYTES = 19, 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_2000_US = 946_684_800_000_000
_MICROSECOND = timedelta(microseconds=1)
_OUT_OF_RANGE = "22003"

_BINS_FROM = "timestamptz '2001-01-01Z'"
"""A Monday at midnight, so that days begin at 00:00 UTC and weeks on Mondays."""

CHUNK_POINTS = 100_000


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """A series as the historian knows it: `tenant` and `id` are its numbers."""

    tenant: int
    id: int
    device_id: UUID
    metric: str
    kind: Kind
    unit: str | None


@dataclass(frozen=True, slots=True)
class Points:
    """Numeric points of one series as columns of equal length; `ts` in µs since 1970 UTC."""

    ts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    quality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.ts)

    def __getitem__(self, part: slice | npt.NDArray[np.bool_]) -> "Points":
        """Return some of the points."""
        return Points(self.ts[part], self.values[part], self.quality[part])

    def usable(self) -> "Points":
        """Return the points that are not of bad quality."""
        return self[self.quality < Quality.BAD]

    @staticmethod
    def join(parts: Sequence["Points"]) -> "Points":
        """Return the points of all parts, in their order."""
        if not parts:
            return Points(np.empty(0, "i8"), np.empty(0, "f8"), np.empty(0, "u1"))
        return Points(
            np.concatenate([part.ts for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.quality for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class TextPoint:
    """A point whose value is a string."""

    ts: datetime
    value: str
    quality: Quality


@dataclass(frozen=True, slots=True)
class LatestPoint:
    """The newest point of a series; bools are 0 and 1."""

    ts: datetime
    value: float | str
    quality: Quality


class Aggregate(StrEnum):
    """What a bucket's points are summed up by.

    `time_weighted_mean` lets each value hold until the next point, or the end of bucket or range;
    a bucket begins with the value held from the one before, if the range has one.
    """

    MIN = "min"
    MAX = "max"
    MEAN = "mean"
    SUM = "sum"
    FIRST = "first"
    LAST = "last"
    TIME_WEIGHTED_MEAN = "time_weighted_mean"


_SQL = {
    Aggregate.MIN: "min(value)",
    Aggregate.MAX: "max(value)",
    Aggregate.MEAN: "avg(value)",
    Aggregate.SUM: "sum(value)",
    Aggregate.FIRST: "(array_agg(value ORDER BY ts))[1]",
    Aggregate.LAST: "(array_agg(value ORDER BY ts DESC))[1]",
    Aggregate.TIME_WEIGHTED_MEAN: "sum(held + carried) / sum(held_s + carried_s)",
}

_PLAIN = f"""
    SELECT date_bin(:width, ts, {_BINS_FROM}) AS bucket, ts, value FROM historian.points
    WHERE tenant = :tenant AND series = :series AND ts >= :start AND ts < :end
      AND quality < {Quality.BAD:d}
"""  # noqa: S608 - put together from constants

_HELD = f"""
    SELECT bucket, ts, value, held_s, value * held_s AS held, carried_s,
      coalesce(previous, 0) * carried_s AS carried
    FROM (
      SELECT bucket, ts, value, previous,
        extract(epoch FROM least(next_ts, bucket + :width, :end) - ts)::float8 AS held_s,
        CASE WHEN previous_ts < bucket THEN extract(epoch FROM ts - bucket)::float8 ELSE 0 END
          AS carried_s
      FROM (
        SELECT *, lead(ts) OVER w AS next_ts, lag(ts) OVER w AS previous_ts,
          lag(value) OVER w AS previous
        FROM ({_PLAIN}) plain WINDOW w AS (ORDER BY ts)
      ) neighbours
    ) weights
"""  # noqa: S608 - put together from constants


@dataclass(frozen=True, slots=True)
class Bucket:
    """The points of [start, start + width) that are not of bad quality, summed up."""

    start: datetime
    count: int
    values: dict[Aggregate, float]


async def find_series(
    session: AsyncSession, tenant_id: UUID, device_id: UUID, metric: str
) -> SeriesInfo:
    """Return a device's series. Raises NotFound if the tenant has none such."""
    row = (
        await session.execute(
            text(
                "SELECT tenant, id, kind, unit FROM historian.series"
                " WHERE tenant = historian.number_of(:tenant_id)"
                " AND device_id = :device_id AND metric = :metric"
            ),
            {"tenant_id": tenant_id, "device_id": device_id, "metric": metric},
        )
    ).one_or_none()
    if row is None:
        raise NotFound(f"device {device_id} has no points of that metric")
    return SeriesInfo(row.tenant, row.id, device_id, metric, Kind(row.kind), row.unit)


async def read_points(
    session: AsyncSession,
    series: SeriesInfo,
    start: datetime,
    end: datetime,
    *,
    limit: int,
    newest_first: bool = False,
    usable: bool = False,
) -> Points:
    """Return up to `limit` points of [start, end): of every quality, or just what is not bad."""
    connection = await session.connection()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    received: list[bytes] = []

    async def receive(part: bytes) -> None:
        received.append(part)

    # Only numbers and times are put in; with parameters, COPY would cost two more round trips.
    await driver.copy_from_query(
        "SELECT ts, value, quality FROM historian.points"  # noqa: S608 - as above
        f" WHERE tenant = {series.tenant:d} AND series = {series.id:d}"
        f" AND ts >= '{_literal(start)}' AND ts < '{_literal(end)}'"
        f"{f' AND quality < {Quality.BAD:d}' if usable else ''}"
        f" ORDER BY ts{' DESC' if newest_first else ''} LIMIT {limit:d}",
        output=receive,
        format="binary",
    )
    rows = np.frombuffer(b"".join(received)[_HEADER_BYTES:-_TRAILER_BYTES], dtype=_ROW)
    return Points(
        rows["ts"].astype(np.int64) + _EPOCH_2000_US,
        rows["value"].astype(np.float64),
        rows["quality"].astype(np.uint8),
    )


async def stream_points(
    session: AsyncSession,
    series: SeriesInfo,
    start: datetime,
    end: datetime,
    *,
    usable: bool = False,
    chunk: int = CHUNK_POINTS,
) -> AsyncIterator[Points]:
    """Return all points of [start, end), oldest first, in chunks of equal size but for the last."""
    while True:
        points = await read_points(session, series, start, end, limit=chunk, usable=usable)
        if len(points):
            yield points
        if len(points) < chunk:
            return
        start = as_datetime(int(points.ts[-1])) + _MICROSECOND


async def read_texts(
    session: AsyncSession,
    series: SeriesInfo,
    start: datetime,
    end: datetime,
    *,
    limit: int,
    newest_first: bool = False,
) -> list[TextPoint]:
    """Return up to `limit` points of [start, end) of a series that holds strings."""
    rows = await session.execute(
        text(
            "SELECT ts, value, quality FROM historian.texts"  # noqa: S608 - put together from constants
            " WHERE tenant = :tenant AND series = :series AND ts >= :start AND ts < :end"
            f" ORDER BY ts{' DESC' if newest_first else ''} LIMIT :limit"
        ),
        {**_keys(series, start, end), "limit": limit},
    )
    return [TextPoint(ts.astimezone(UTC), value, Quality(quality)) for ts, value, quality in rows]


async def latest(
    session: AsyncSession, series: SeriesInfo, start: datetime, end: datetime
) -> LatestPoint | None:
    """Return the newest point of [start, end), if there is one."""
    if series.kind is Kind.TEXT:
        texts = await read_texts(session, series, start, end, limit=1, newest_first=True)
        return LatestPoint(texts[0].ts, texts[0].value, texts[0].quality) if texts else None
    points = await read_points(session, series, start, end, limit=1, newest_first=True)
    if not len(points):
        return None
    return LatestPoint(
        as_datetime(int(points.ts[0])), float(points.values[0]), Quality(int(points.quality[0]))
    )


async def count_qualities(
    session: AsyncSession, series: SeriesInfo, start: datetime, end: datetime
) -> dict[Quality, int]:
    """Return how many points of [start, end) have which quality; every quality is named."""
    table = "texts" if series.kind is Kind.TEXT else "points"
    rows = await session.execute(
        text(
            f"SELECT quality, count(*) FROM historian.{table}"  # noqa: S608 - a name from the line above
            " WHERE tenant = :tenant AND series = :series AND ts >= :start AND ts < :end"
            " GROUP BY quality"
        ),
        _keys(series, start, end),
    )
    counts = dict.fromkeys(Quality, 0)
    for quality, count in rows:
        counts[Quality(quality)] = count
    return counts


async def read_buckets(
    session: AsyncSession,
    series: SeriesInfo,
    start: datetime,
    end: datetime,
    width: timedelta,
    aggregates: Sequence[Aggregate],
) -> list[Bucket]:
    """Return the buckets of [start, end) that have points, oldest first; bad points do not count.

    Buckets begin at multiples of `width` from a Monday, 00:00 UTC; the first and the last may be
    cut by the range. Raises Invalid if the values are too large to be summed up.
    """
    wanted = list(dict.fromkeys(aggregates))
    source = _HELD if Aggregate.TIME_WEIGHTED_MEAN in wanted else _PLAIN
    columns = ", ".join(f"{_SQL[aggregate]} AS {aggregate}" for aggregate in wanted)
    try:
        rows = await session.execute(
            text(
                f"SELECT bucket, count(*) AS count{', ' if columns else ''}{columns}"  # noqa: S608 - from constants
                f" FROM ({source}) p GROUP BY bucket ORDER BY bucket"
            ),
            {**_keys(series, start, end), "width": width},
        )
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _OUT_OF_RANGE:
            raise Invalid("the values are too large to be summed up") from error
        raise
    return [
        Bucket(bucket.astimezone(UTC), count, dict(zip(wanted, values, strict=True)))
        for bucket, count, *values in rows
    ]


def as_datetime(us: int) -> datetime:
    """Return µs since 1970 UTC as an aware datetime, exactly."""
    return _EPOCH + us * _MICROSECOND


def as_us(moment: datetime) -> int:
    """Return a moment as µs since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


def _keys(series: SeriesInfo, start: datetime, end: datetime) -> dict[str, object]:
    return {"tenant": series.tenant, "series": series.id, "start": start, "end": end}


def _literal(moment: datetime) -> str:
    # isoformat() writes the year 1 as 0001, which PostgreSQL reads.
    return moment.astimezone(UTC).isoformat()
