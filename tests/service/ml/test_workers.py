"""Several workers, between which shards move."""

from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg

from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.events.ingest import TelemetryReceived
from libs.common.shards import Shards
from services.ml.store.definitions import Definitions
from services.ml.store.excursions import Excursions
from services.ml.usecases.scoring import Scoring
from tests.history import SeriesOfTest
from tests.service.ml.conftest import NOON, NOON_US, World

SHARD = 3


@asynccontextmanager
async def a_worker(world: World) -> AsyncIterator[Scoring]:
    """Another replica's scoring. It is handed its batches by hand, and ends without a word."""
    database = Database(world.urls.rw("ml"))
    engine = Database(world.urls.engine("ml"), across_tenants=True)
    scoring = Scoring(
        Definitions(engine),
        Excursions(database, world.bus.outbox("ml")),
        Shards("ml", engine, uuid4()),
        SystemClock(),
        lateness=world.settings.lateness,
    )
    await scoring.refresh()
    try:
        yield scoring
    finally:
        await database.close()
        await engine.close()


def a_batch(series: SeriesOfTest, *points: tuple[float, float]) -> TelemetryReceived:
    """Return a batch of points (seconds after noon, value)."""
    return TelemetryReceived(
        at=NOON + timedelta(seconds=max(s for s, _ in points)),
        shard=SHARD,
        tenants=array("i", [series.tenant] * len(points)).tobytes(),
        series=array("i", [series.id] * len(points)).tobytes(),
        ts=array("q", [NOON_US + round(s * 1_000_000) for s, _ in points]).tobytes(),
        values=array("d", [v for _, v in points]).tobytes(),
        quality=bytes(len(points)),
    )


async def test_a_shard_moves_between_two_workers_and_back_and_no_point_is_missed_or_told_twice(
    world: World,
) -> None:
    series = await world.trained_series()
    await world.model(series)
    async with a_worker(world) as one, a_worker(world) as other:
        await one.score([a_batch(series, (0, 50))])
        await other.score([a_batch(series, (0, 50), (1, 60), (2, 70))])
        # To what the first one remembers nothing is under way; these would not be counted.
        await one.score([a_batch(series, (3, 50), (4, 50))])
        await other.score([a_batch(series, (4, 50), (5, 50))])
    await world.settled()
    assert [event.value for event in world.heard] == [60]
    [anomaly] = await world.anomalies()
    assert (anomaly["points"], anomaly["peak_value"]) == (2, 70)
    assert anomaly["ended_at"] is not None


async def test_a_worker_that_does_not_know_yet_that_it_lost_its_shard_cannot_write(
    world: World,
) -> None:
    series = await world.trained_series()
    await world.model(series)
    async with a_worker(world) as one, a_worker(world) as other:
        await one.score([a_batch(series, (0, 50))])
        await other.score([a_batch(series, (1, 50), (2, 60))])
        # As if within the time for which it trusts itself: it asks nobody before it looks.
        one._shards._trusted_until[SHARD] = float("inf")
        await one.score([a_batch(series, (1, 99), (2, 60), (3, 61))])
        # It has noticed, and taken the shard back before it wrote.
        assert await _owner(world) == one._shards._owner
    await world.settled()
    assert [event.value for event in world.heard] == [60]
    [anomaly] = await world.anomalies()
    assert (anomaly["points"], anomaly["peak_value"]) == (2, 61)


async def test_a_worker_that_ends_gives_its_shards_up(world: World) -> None:
    series = await world.trained_series()
    await world.model(series)
    async with a_worker(world) as worker:
        await worker.score([a_batch(series, (0, 50))])
        assert await _owner(world) == worker._shards._owner
        await worker.close()
        assert await _owner(world) is None


async def _owner(world: World) -> UUID | None:
    connection = await asyncpg.connect(world.urls.admin)
    try:
        owner: UUID | None = await connection.fetchval(
            "SELECT owner FROM ml.shards WHERE shard = $1", SHARD
        )
        return owner
    finally:
        await connection.close()
