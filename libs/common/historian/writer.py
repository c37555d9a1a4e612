"""Writing points: columns in, rows out, within the caller's transaction.

The fast way is binary COPY. A point that is there already makes it fail as a whole; then the same
rows go in by INSERT … ON CONFLICT DO NOTHING: the first value wins. Rows that the table refuses
for a reason of their own are found by halving and handed back, their neighbours are stored.
"""

import asyncio
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TypeAlias

import asyncpg
import asyncpg.pool
import numpy as np
import numpy.typing as npt
import structlog

from libs.common.events.ingest import TelemetryReceived, Text

log = structlog.get_logger(__name__)

Connection: TypeAlias = "asyncpg.Connection | asyncpg.pool.PoolConnectionProxy"

_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("ts_length", ">i4"),
        ("ts", ">i8"),
        ("value_length", ">i4"),
        ("value", ">f8"),
        ("tenant_length", ">i4"),
        ("tenant", ">i4"),
        ("series_length", ">i4"),
        ("series", ">i4"),
        ("quality_length", ">i4"),
        ("quality", ">i2"),
    ]
)
"""A row of `historian.points` in PostgreSQL's binary COPY format."""

_COLUMNS = ("ts", "value", "tenant", "series", "quality")
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
LOCKED_PAUSE_S = 10.0
"""How long not to ask again for a partition that a reader stood in the way of."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH_2000_US = 946_684_800_000_000
_DAY_US = 86_400_000_000

_INSERT_POINTS = """
    INSERT INTO historian.points (ts, value, tenant, series, quality)
    SELECT '1970-01-01Z'::timestamptz + us * interval '1 microsecond', value, tenant, series, quality
    FROM unnest($1::bigint[], $2::float8[], $3::int[], $4::int[], $5::smallint[])
      AS p(us, value, tenant, series, quality)
    ON CONFLICT DO NOTHING RETURNING series
"""

_INSERT_TEXTS = """
    INSERT INTO historian.texts (ts, value, tenant, series, quality)
    SELECT '1970-01-01Z'::timestamptz + us * interval '1 microsecond', value, tenant, series, quality
    FROM unnest($1::bigint[], $2::text[], $3::int[], $4::int[], $5::smallint[])
      AS p(us, value, tenant, series, quality)
    ON CONFLICT DO NOTHING RETURNING series
"""


@dataclass(frozen=True, slots=True)
class Columns:
    """Numeric points as columns of equal length: numbers of the historian.

    `ts` and `received` in µs since 1970 UTC; points are received just before their batch is closed.
    """

    received: npt.NDArray[np.int64]
    ts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    tenants: npt.NDArray[np.int32]
    series: npt.NDArray[np.int32]
    quality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.ts)

    def __getitem__(self, part: slice) -> "Columns":
        """Return some of the points."""
        return Columns(
            self.received[part],
            self.ts[part],
            self.values[part],
            self.tenants[part],
            self.series[part],
            self.quality[part],
        )

    @staticmethod
    def of(batches: Sequence[TelemetryReceived]) -> "Columns":
        """Join the points of several batches, in order."""
        return Columns(
            np.repeat(
                np.array([(b.at - _EPOCH) // _MICROSECOND for b in batches], dtype=np.int64),
                [len(b) for b in batches],
            ),
            np.frombuffer(b"".join(b.ts for b in batches), dtype="<i8"),
            np.frombuffer(b"".join(b.values for b in batches), dtype="<f8"),
            np.frombuffer(b"".join(b.tenants for b in batches), dtype="<i4"),
            np.frombuffer(b"".join(b.series for b in batches), dtype="<i4"),
            np.frombuffer(b"".join(b.quality for b in batches), dtype="u1"),
        )


@dataclass(frozen=True, slots=True)
class Rejected:
    """A point that the store refuses, and what it said."""

    tenant: int
    series: int
    ts: int
    value: float | str
    reason: str


@dataclass(slots=True)
class Written:
    """What became of the points: each was stored, was there already, or was rejected."""

    stored: int = 0
    duplicates: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    new: list[int] | None = None
    """The series of each point that was stored; None: all of them were."""


class DayPartitions:
    """Knows which days have a partition, and makes those that are missing."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._not_before = 0.0

    async def learn(self, connection: Connection) -> None:
        """Read from the database which days there are."""
        rows = await connection.fetch("SELECT * FROM historian.days()")
        self._known = {row[0].toordinal() for row in rows}

    async def ensure(self, connection: Connection, days: Iterable[date]) -> None:
        """Make the days' partitions, each in a transaction of its own.

        A long reader may stand in the way. Then the day is left for later: its points lie in the
        default partition until it is made, and move with that.
        """
        now = asyncio.get_running_loop().time()
        for day in days:
            if day.toordinal() in self._known or now < self._not_before:
                continue
            try:
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '1s'")
                    await connection.execute("SELECT historian.ensure_days($1, $1)", day)
            except asyncpg.LockNotAvailableError:
                log.warning("a day's partition could not be made now", day=day.isoformat())
                self._not_before = now + LOCKED_PAUSE_S
                return
            self._known.add(day.toordinal())

    async def house_strays(self, connection: Connection, most: int) -> None:
        """Make up to `most` days for points that lie in no day's partition, and move these there."""
        rows = await connection.fetch("SELECT historian.stray_days($1)", most)
        days = [row[0] for row in rows]
        # One that has strays has no partition, or lost it.
        self._known -= {day.toordinal() for day in days}
        await self.ensure(connection, days)

    def missing(self, batches: Sequence[TelemetryReceived]) -> list[date]:
        """Return the days of these batches' points that are not known to have a partition.

        The newest first, since these are waited for.
        """
        days = {int(day) for day in np.unique(Columns.of(batches).ts // _DAY_US)}
        days |= {text.ts // _DAY_US for batch in batches for text in batch.texts}
        first = date(1970, 1, 1).toordinal()
        return [
            date.fromordinal(first + day)
            for day in sorted(days, reverse=True)
            if first + day not in self._known
        ]


async def write_points(connection: Connection, columns: Columns) -> Written:
    """Store numeric points within the connection's open transaction.

    Raises what is not the rows' own fault; which rows are refused is in the result.
    """
    if not len(columns):
        return Written()
    try:
        async with connection.transaction():
            await connection.copy_to_table(
                "points",
                schema_name="historian",
                columns=_COLUMNS,
                source=io.BytesIO(_as_copy(columns)),
                format="binary",
            )
        return Written(stored=len(columns))
    except asyncpg.PostgresError as error:
        if not is_of_the_rows(error):
            raise
    written = Written(new=[])
    await _insert_points(connection, columns, written)
    return written


async def write_texts(connection: Connection, texts: Sequence[Text]) -> Written:
    """Store points whose values are strings; as `write_points`."""
    written = Written(new=[])
    if texts:
        await _insert_texts(connection, texts, written)
    return written


async def _insert_points(connection: Connection, columns: Columns, written: Written) -> None:
    try:
        async with connection.transaction():
            new = await connection.fetch(
                _INSERT_POINTS,
                columns.ts.tolist(),
                columns.values.tolist(),
                columns.tenants.tolist(),
                columns.series.tolist(),
                columns.quality.tolist(),
            )
    except asyncpg.PostgresError as error:
        if not is_of_the_rows(error):
            raise
        if len(columns) == 1:
            written.rejected.append(
                Rejected(
                    int(columns.tenants[0]),
                    int(columns.series[0]),
                    int(columns.ts[0]),
                    float(columns.values[0]),
                    str(error),
                )
            )
            return
        middle = len(columns) // 2
        await _insert_points(connection, columns[:middle], written)
        await _insert_points(connection, columns[middle:], written)
        return
    _count(new, len(columns), written)


async def _insert_texts(connection: Connection, texts: Sequence[Text], written: Written) -> None:
    try:
        async with connection.transaction():
            new = await connection.fetch(
                _INSERT_TEXTS,
                [t.ts for t in texts],
                [t.value for t in texts],
                [t.tenant for t in texts],
                [t.series for t in texts],
                [t.quality for t in texts],
            )
    except asyncpg.PostgresError as error:
        if not is_of_the_rows(error):
            raise
        if len(texts) == 1:
            text = texts[0]
            written.rejected.append(
                Rejected(text.tenant, text.series, text.ts, text.value, str(error))
            )
            return
        middle = len(texts) // 2
        await _insert_texts(connection, texts[:middle], written)
        await _insert_texts(connection, texts[middle:], written)
        return
    _count(new, len(texts), written)


def is_of_the_rows(error: asyncpg.PostgresError) -> bool:
    """Whether the fault lies in rows (a bad value, a broken constraint) and not in table or server."""
    return (error.sqlstate or "").startswith(("22", "23"))


def _count(new: Sequence[asyncpg.Record], offered: int, written: Written) -> None:
    written.stored += len(new)
    written.duplicates += offered - len(new)
    if written.new is not None:
        written.new += [row[0] for row in new]


def _as_copy(columns: Columns) -> bytes:
    rows = np.empty(len(columns), dtype=_ROW)
    rows["fields"] = len(_COLUMNS)
    rows["ts_length"] = rows["value_length"] = 8
    rows["tenant_length"] = rows["series_length"] = 4
    rows["quality_length"] = 2
    rows["ts"] = columns.ts - _EPOCH_2000_US
    rows["value"] = columns.values
    rows["tenant"] = columns.tenants
    rows["series"] = columns.series
    rows["quality"] = columns.quality
    return _HEADER + rows.tobytes() + _TRAILER


def as_datetime(us: int) -> datetime:
    """Return µs since 1970 UTC as an aware datetime, exactly."""
    return _EPOCH + us * _MICROSECOND
