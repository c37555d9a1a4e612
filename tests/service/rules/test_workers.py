"""Several workers, between which shards move."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.shards import Shards
from services.rules.store.checkpoints import Checkpoints
from services.rules.store.definitions import Definitions
from services.rules.usecases.evaluation import Evaluation
from tests.service.rules.conftest import NOON, World, a_batch

SHARD = 3


@asynccontextmanager
async def a_worker(world: World) -> AsyncIterator[Evaluation]:
    """Another replica's evaluation. It is handed its batches by hand, and ends without a word."""
    database = Database(world.urls.rw("rules"))
    engine = Database(world.urls.engine("rules"), across_tenants=True)
    evaluation = Evaluation(
        Definitions(engine),
        Checkpoints(database, world.bus.outbox("rules")),
        Shards("rules", engine, uuid4()),
        SystemClock(),
        lateness=world.settings.lateness,
    )
    await evaluation.refresh()
    try:
        yield evaluation
    finally:
        await database.close()
        await engine.close()


async def test_a_shard_moves_between_two_workers_and_back_and_nothing_is_lost_or_told_twice(
    world: World,
) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)

    async with a_worker(world) as one, a_worker(world) as other:

        async def gets(worker: Evaluation, *points: tuple[float, float]) -> None:
            await worker.evaluate([a_batch([(series, s, v) for s, v in points], shard=SHARD)])

        await gets(one, (0, 95))
        await gets(other, (0, 95), (1, 94), (2, 60))
        # To what the first one remembers the rule is tripped still, and this would be nothing new.
        await gets(one, (3, 96))
        await gets(other, (4, 97))
        await gets(one, (4, 97), (5, 50))
    await world.settled()
    assert world.story(rule) == [
        "triggered 95.0",
        "cleared 60.0 recovered",
        "triggered 96.0",
        "cleared 50.0 recovered",
    ]


async def test_a_worker_that_does_not_know_yet_that_it_lost_its_shard_cannot_write(
    world: World,
) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device)
    async with a_worker(world) as worker:
        await worker.evaluate([a_batch([(series, 0, 70)], shard=SHARD)])
        # Within the time for which it trusts itself, another took the shard, fired, and was gone.
        await world.fetchval("UPDATE rules.shards SET owner = $1 WHERE shard = $2", uuid4(), SHARD)
        await _trip(world, rule)
        worker._shards._trusted_until[SHARD] = float("inf")
        await worker.evaluate([a_batch([(series, 1, 95)], shard=SHARD)])
        await world.settled()
        assert world.story(rule) == []
        await worker.evaluate([a_batch([(series, 2, 60)], shard=SHARD)])
        await world.settled()
        assert world.story(rule) == ["cleared 60.0 recovered"]


async def _trip(world: World, rule: UUID) -> None:
    await world.fetchval(
        "INSERT INTO rules.rule_state (tenant_id, rule_id, device_id, fired_at, last_ts)"
        " SELECT tenant_id, id, device_id, $2, $2 FROM rules.rules WHERE id = $1",
        rule,
        NOON,
    )


async def test_a_worker_that_is_killed_after_its_commit_leaves_the_next_one_nothing_to_repeat(
    world: World,
) -> None:
    tenant, device = uuid4(), uuid4()
    series = await world.series(tenant, device, "temp")
    rule = await world.create(tenant, device, **{"for": 5})
    first = a_batch([(series, 0, 95), (series, 4, 95)], shard=SHARD)
    second = a_batch([(series, 5, 95), (series, 6, 60), (series, 7, 95)], shard=SHARD)
    async with a_worker(world) as killed:
        await killed.evaluate([first])
        await killed.evaluate([second])
    # Neither was acknowledged: both come again, to the next one, in one go.
    async with a_worker(world) as successor:
        await successor.evaluate([first, second])
        await successor.evaluate([a_batch([(series, 11, 95), (series, 12, 95)], shard=SHARD)])
    await world.settled()
    assert world.story(rule) == [
        "triggered 95.0",
        "cleared 60.0 recovered",
        "triggered 95.0",
    ]


async def test_a_series_that_was_not_known_yet_is_asked_for_again(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    rule = await world.create(tenant, device)
    # Its number is known before what it is.
    number = await world.fetchval(
        "SELECT nextval(pg_get_serial_sequence('historian.series', 'id'))"
    )
    async with a_worker(world) as worker:
        await worker.evaluate([a_batch([((1, number), 0, 95)], shard=SHARD)])
        await world.fetchval(
            "INSERT INTO historian.series (tenant, id, device_id, metric, kind)"
            " OVERRIDING SYSTEM VALUE"
            " VALUES (historian.tenant_number($1), $2, $3, 'temp', 0)",
            tenant,
            number,
            device,
        )
        await worker.refresh()
        await worker.evaluate([a_batch([((1, number), 1, 96)], shard=SHARD)])
    await world.settled()
    assert world.story(rule) == ["triggered 96.0"]
