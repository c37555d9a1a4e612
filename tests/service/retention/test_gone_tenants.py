"""What becomes of the points of a tenant that is no more."""

from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from libs.common.clock import SystemClock
from libs.common.events.base import to_message
from libs.common.events.tenancy import TenantDeleted
from services.retention.jobs import DailyErasure
from services.retention.usecases.erasure import GONE_KEPT
from tests.alarms import shift_clock
from tests.service.retention.conftest import World
from tests.waiting import until


async def goes(world: World, tenant_id: UUID) -> None:
    """Say that a tenant is no more, and wait until retention has handled it."""
    event = TenantDeleted(tenant_id=tenant_id, at=SystemClock().now(), slug="gone")
    await world.bus.publish([to_message(event)])

    async def handled() -> bool:
        return bool(
            await world.past.query("SELECT FROM retention.inbox WHERE event_id = $1", event.id)
        )

    await until(handled, "the event is handled")


async def number(world: World, tenant_id: UUID) -> int | None:
    rows = await world.past.query("SELECT number FROM historian.tenant WHERE id = $1", tenant_id)
    return rows[0]["number"] if rows else None


async def erase(world: World, *, after: timedelta) -> None:
    """Let that much time go by for the daily erasing."""
    clock = SystemClock()
    clock.offset = after
    await shift_clock(world.past.urls, f"{after.total_seconds()} seconds")
    try:
        await DailyErasure(world.app.state.erasure, clock).run()
    finally:
        await shift_clock(world.past.urls, "0")


async def test_series_go_at_once_and_points_when_they_are_a_day_old(world: World) -> None:
    other = uuid4()
    await world.keep(90)
    mine = await world.aged(40, 3, 0)
    theirs = await world.aged(40, 3, 0, tenant_id=other)
    await goes(world, world.tenant_id)
    assert not await world.past.query("SELECT FROM historian.series WHERE tenant = $1", mine.tenant)
    assert not await world.past.query(
        "SELECT FROM retention.policies WHERE tenant_id = $1", world.tenant_id
    )
    await erase(world, after=timedelta())
    assert await mine.count() == 1
    assert [said.rows for said in await world.told() if said.how == "rows_deleted"] == [2]
    await erase(world, after=timedelta(days=2))
    assert await mine.count() == 0
    assert await theirs.count() == 3
    assert await world.past.query("SELECT FROM historian.series WHERE tenant = $1", theirs.tenant)


async def test_the_number_goes_last_when_no_point_bears_it_any_more(world: World) -> None:
    mine = await world.aged(40)
    await goes(world, world.tenant_id)
    now = SystemClock().now()
    await erase(world, after=GONE_KEPT - timedelta(hours=1))
    assert await number(world, world.tenant_id) == mine.tenant
    # A batch that lay on the bus for long: still known whose it is, and erased.
    await mine.put([(now + timedelta(days=5), 1.0, 0)])
    await erase(world, after=GONE_KEPT - timedelta(minutes=30))
    assert await mine.count() == 0
    # One that is not erased yet holds the number.
    await mine.put([(now + GONE_KEPT, 1.0, 0)])
    await erase(world, after=GONE_KEPT + timedelta(hours=1))
    assert (await mine.count(), await number(world, world.tenant_id)) == (1, mine.tenant)
    await erase(world, after=GONE_KEPT + timedelta(days=3))
    assert (await mine.count(), await number(world, world.tenant_id)) == (0, None)


async def test_points_that_come_when_nobody_knows_whose_they_are_go_with_their_day(
    world: World,
) -> None:
    mine = await world.aged(40)
    await goes(world, world.tenant_id)
    now = SystemClock().now()
    await erase(world, after=timedelta(days=8))
    assert await number(world, world.tenant_id) is None
    await mine.put([(now, 1.0, 0)])
    await erase(world, after=timedelta(days=9))
    assert await mine.count() == 1
    await erase(world, after=timedelta(days=400))
    assert await mine.count() == 0


async def test_a_tenant_that_goes_twice_goes_once_and_one_without_points_at_all(
    world: World,
) -> None:
    mine = await world.aged(40)
    await goes(world, world.tenant_id)
    [first] = await world.past.query(
        "SELECT gone_at FROM historian.tenant WHERE id = $1", world.tenant_id
    )
    # While the first word was heard, a device had another metric.
    await world.past.series(world.tenant_id, metric="late")
    await goes(world, world.tenant_id)
    assert not await world.past.query("SELECT FROM historian.series WHERE tenant = $1", mine.tenant)
    [second] = await world.past.query(
        "SELECT gone_at FROM historian.tenant WHERE id = $1", world.tenant_id
    )
    assert first == second
    await goes(world, uuid4())


async def test_who_closes_a_tenants_history_closes_no_other(world: World) -> None:
    other = uuid4()
    mine = await world.aged(1)
    theirs = await world.aged(1, tenant_id=other)
    connection = await asyncpg.connect(world.past.urls.rw("retention"))
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT set_config('app.tenant_ids', $1, true)", f"{{{world.tenant_id}}}"
            )
            await connection.execute("SELECT historian.close_tenants()")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT historian.forget_tenants(now())")
    finally:
        await connection.close()
    rows = await world.past.query(
        "SELECT t.id, (SELECT count(*) FROM historian.series s WHERE s.tenant = t.number),"
        " gone_at IS NOT NULL AS gone FROM historian.tenant t WHERE t.number = ANY($1)",
        [mine.tenant, theirs.tenant],
    )
    assert {tuple(row) for row in rows} == {(world.tenant_id, 0, True), (other, 1, False)}
