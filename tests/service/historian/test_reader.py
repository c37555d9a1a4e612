"""Reading points as a service does: under its role, bound to its tenant."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database, bound_to
from libs.common.errors import NotFound
from libs.common.historian.point import Kind, Quality
from libs.common.historian.reader import (
    Aggregate,
    LatestPoint,
    Points,
    as_datetime,
    as_us,
    count_qualities,
    find_series,
    latest,
    read_buckets,
    read_points,
    stream_points,
)
from tests.database import DatabaseUrls
from tests.history import BAD, Past

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.fixture
async def database(database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    database = Database(database_urls.rw("analytics"))
    yield database
    await database.close()


@pytest.fixture
def past(database_urls: DatabaseUrls) -> Past:
    return Past(database_urls)


@asynccontextmanager
async def session_of(database: Database, tenant_id: UUID) -> AsyncIterator[AsyncSession]:
    with bound_to((tenant_id,)):
        async with database.session() as session:
            yield session


async def test_points_come_back_to_the_microsecond_and_the_last_bit(
    database: Database, past: Past
) -> None:
    tenant = uuid4()
    ts = datetime(2026, 6, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    values = [0.1, -0.0, 5e-324, 1.7976931348623157e308]
    series = await past.series(tenant)
    await series.put([(ts + i * timedelta(microseconds=1), v, i % 3) for i, v in enumerate(values)])
    async with session_of(database, tenant) as session:
        info = await find_series(session, tenant, series.device_id, "temp")
        assert (info.tenant, info.id, info.kind, info.unit) == (
            series.tenant,
            series.id,
            Kind.NUMBER,
            "°C",
        )
        points = await read_points(session, info, NOON, NOON + 24 * HOUR, limit=10)
        assert [as_datetime(us) for us in points.ts.tolist()] == [
            ts + i * timedelta(microseconds=1) for i in range(4)
        ]
        assert [v.hex() for v in points.values.tolist()] == [v.hex() for v in values]
        assert points.quality.tolist() == [0, 1, 2, 0]
        newest = await read_points(
            session, info, NOON, NOON + 24 * HOUR, limit=2, newest_first=True, usable=True
        )
        assert newest.values.tolist() == [values[3], values[1]]
        none = await read_points(session, info, NOON, ts, limit=10)
        assert (len(none), len(Points.join([]))) == (0, 0)


@pytest.mark.parametrize("chunk", [1, 7, 30, 31, 100])
async def test_a_long_range_comes_in_chunks_without_gap_or_repetition(
    database: Database, past: Past, chunk: int
) -> None:
    tenant = uuid4()
    series = await past.series(tenant)
    await series.add(NOON, 3_000, range(30))
    await series.add(NOON + SECOND, 3_000, range(5), quality=BAD)
    async with session_of(database, tenant) as session:
        info = await find_series(session, tenant, series.device_id, "temp")
        parts = [
            part
            async for part in stream_points(
                session, info, NOON, NOON + 48 * HOUR, usable=True, chunk=chunk
            )
        ]
    assert Points.join(parts).values.tolist() == list(range(30))
    assert [len(part) for part in parts[:-1]] == [chunk] * (len(parts) - 1)


async def test_even_who_knows_a_foreign_series_number_reads_nothing(
    database: Database, past: Past
) -> None:
    mine, theirs = uuid4(), uuid4()
    own, foreign = await past.series(mine), await past.series(theirs)
    await own.add(NOON, 1, [1])
    await foreign.add(NOON, 1, [2, 3])
    async with session_of(database, mine) as session:
        info = await find_series(session, mine, own.device_id, "temp")
        for tenant_id in (mine, theirs):
            with pytest.raises(NotFound):
                await find_series(session, tenant_id, foreign.device_id, "temp")
        for stolen in (
            replace(info, id=foreign.id),
            replace(info, id=foreign.id, tenant=foreign.tenant),
        ):
            span = (session, stolen, NOON, NOON + HOUR)
            assert len(await read_points(*span, limit=10)) == 0
            assert await latest(*span) is None
            assert await read_buckets(*span, HOUR, [Aggregate.MEAN]) == []
            assert sum((await count_qualities(*span)).values()) == 0


async def test_the_latest_point_is_of_any_kind(database: Database, past: Past) -> None:
    tenant = uuid4()
    numbers, texts = await past.series(tenant), await past.series(tenant, kind=Kind.TEXT)
    await numbers.add(NOON, 1, [1, 2], quality=1)
    await texts.put([(NOON, "on", 0), (NOON + SECOND, "off", 0)])
    async with session_of(database, tenant) as session:
        info = await find_series(session, tenant, numbers.device_id, "temp")
        assert await latest(session, info, NOON, NOON + HOUR) == LatestPoint(
            NOON + SECOND, 2.0, Quality.UNCERTAIN
        )
        assert await latest(session, info, NOON + HOUR, NOON + 2 * HOUR) is None
        info = await find_series(session, tenant, texts.device_id, "temp")
        assert await latest(session, info, NOON, NOON + HOUR) == LatestPoint(
            NOON + SECOND, "off", Quality.GOOD
        )


async def test_days_and_weeks_begin_where_people_think_they_do(
    database: Database, past: Past
) -> None:
    tenant = uuid4()
    series = await past.series(tenant)
    await series.put([(NOON, 1.0, 0), (NOON + 24 * HOUR, 3.0, 0)])
    async with session_of(database, tenant) as session:
        info = await find_series(session, tenant, series.device_id, "temp")
        span = (session, info, NOON, NOON + 72 * HOUR)
        days = await read_buckets(*span, 24 * HOUR, [Aggregate.LAST])
        weeks = await read_buckets(*span, 7 * 24 * HOUR, [Aggregate.SUM, Aggregate.MEAN])
        bare = await read_buckets(*span, 7 * 24 * HOUR, [])
    midnight = NOON.replace(hour=0)
    assert [(b.start, b.values[Aggregate.LAST]) for b in days] == [
        (midnight, 1),
        (midnight + 24 * HOUR, 3),
    ]
    # The first of June 2026 is a Monday.
    assert [(b.start, b.count, b.values) for b in weeks] == [
        (midnight, 2, {Aggregate.SUM: 4, Aggregate.MEAN: 2})
    ]
    assert [(b.count, b.values) for b in bare] == [(2, {})]


async def test_only_the_days_asked_for_are_opened(past: Past, database_urls: DatabaseUrls) -> None:
    tenant = uuid4()
    series = await past.series(tenant)
    await series.add(NOON - 72 * HOUR, 24 * 3_600, range(6))
    connection = await asyncpg.connect(database_urls.rw("analytics"))
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL app.tenant_ids = '{{{tenant}}}'")
            plan = await connection.fetch(
                "EXPLAIN SELECT ts, value, quality FROM historian.points"
                f" WHERE tenant = {series.tenant} AND series = {series.id}"
                f" AND ts >= '{NOON.isoformat()}' AND ts < '{(NOON + HOUR).isoformat()}'"
                " ORDER BY ts LIMIT 10"
            )
    finally:
        await connection.close()
    opened = {word for row in plan for word in row[0].split() if word.startswith("points_2")}
    assert {name.removesuffix("_pkey") for name in opened} == {"points_20260601"}


def test_a_moment_is_a_number_of_microseconds_and_back() -> None:
    assert as_us(as_datetime(-1)) == -1
    assert as_datetime(as_us(NOON)) == NOON
