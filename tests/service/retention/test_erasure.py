"""What is erased, when, and of whom."""

from datetime import date, timedelta
from uuid import uuid4

import asyncpg
import pytest

from libs.common.clock import SystemClock
from services.retention.jobs import DailyErasure
from tests.service.retention.conftest import World, ago


async def days_told(world: World) -> list[date]:
    return [said.start.date() for said in await world.told() if said.start]


async def test_a_tenants_old_points_go_and_nobody_elses(world: World) -> None:
    other = uuid4()
    mine = await world.aged(40, 31, 29, 0.1)
    theirs = await world.aged(40, 31, 29, tenant_id=other)
    policy = await world.keep(30)

    would = await world.run(dry_run=True)
    assert (would["dry_run"], would["days"]) == (True, [])
    [rows] = would["tenants"]
    assert (rows["rows"], rows["complete"], rows["keep_days"]) == (2, True, 30)
    assert (rows["tenant_id"], rows["policy_id"]) == (str(world.tenant_id), policy["id"])
    assert await mine.count() == 4

    did = await world.run(dry_run=False)
    assert did["tenants"] == would["tenants"]
    assert await mine.count() == 2
    assert await theirs.count() == 3
    [said] = await world.told()
    assert (said.how, said.rows, said.data_type) == ("rows_deleted", 2, "telemetry")
    assert (said.tenant_id, str(said.policy_id)) == (world.tenant_id, policy["id"])
    assert said.before.isoformat().replace("+00:00", "Z") == rows["before"]
    assert await world.told(other) == []
    again = await world.run(dry_run=False)
    assert again["tenants"][0]["rows"] == 0
    assert len(await world.told()) == 1


async def test_texts_and_strays_go_too(world: World) -> None:
    series = await world.aged(31)
    await series.put([(ago(31), "auto", 0), (ago(1), "off", 0)])
    await world.past.query(
        "INSERT INTO historian.points VALUES ($1, 5, $2, $3, 0)",
        ago(3_000),
        series.tenant,
        series.id,
    )
    await world.keep(30)
    assert (await world.run(dry_run=False))["tenants"][0]["rows"] == 3
    assert await series.count() == 0
    [left] = await world.past.query(
        "SELECT value FROM historian.texts WHERE tenant = $1", series.tenant
    )
    assert left["value"] == "off"


async def test_a_request_does_so_much_and_the_next_goes_on(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(ago(40), 1, range(105))
    await world.keep(30)
    would = await world.run(dry_run=True)
    assert (would["tenants"][0]["rows"], would["tenants"][0]["complete"]) == (100, False)
    first = await world.run(dry_run=False)
    assert (first["tenants"][0]["rows"], first["tenants"][0]["complete"]) == (100, False)
    second = await world.run(dry_run=False)
    assert (second["tenants"][0]["rows"], second["tenants"][0]["complete"]) == (5, True)
    assert sum(said.rows or 0 for said in await world.told()) == 105


async def test_a_day_that_is_over_for_all_is_dropped_as_a_whole(world: World) -> None:
    day = ago(500).date()
    series = await world.aged(500, 2)
    would = await world.run(dry_run=True, platform_admin=True)
    [due] = [d for d in would["days"] if d["day"] == day.isoformat()]
    assert due["bytes"] > 0
    assert due["busy"] is False
    assert await series.count() == 2

    did = await world.run(dry_run=False, platform_admin=True)
    assert day.isoformat() in [d["day"] for d in did["days"]]
    assert await series.count() == 1
    [gone] = await world.past.query(
        "SELECT to_regclass($1) IS NULL AS gone", f"historian.points_{day:%Y%m%d}"
    )
    assert gone["gone"]
    [said] = [s for s in await world.told() if s.start and s.start.date() == day]
    assert (said.how, said.rows, said.policy_id) == ("day_dropped", None, None)
    assert said.start is not None
    assert said.before - said.start == timedelta(days=1)


async def test_a_day_stays_while_one_tenant_wants_it_and_the_others_points_go_by_the_row(
    world: World,
) -> None:
    keeper = uuid4()
    kept = await world.aged(600, tenant_id=keeper)
    mine = await world.aged(600)
    policy = await world.keep(3_650, tenant_id=keeper)
    try:
        did = await world.run(dry_run=False, platform_admin=True)
        assert did["days"] == []
        assert await kept.count() == 1
        # Mine went by the default.
        assert await mine.count() == 0
        assert [said.how for said in await world.told()] == ["rows_deleted"]
        assert str(world.tenant_id) in [rows["tenant_id"] for rows in did["tenants"]]
        assert str(keeper) not in [rows["tenant_id"] for rows in did["tenants"]]
    finally:
        await world.call("DELETE", f"/policies/{policy['id']}", tenant_id=keeper)
    await world.run(dry_run=False, platform_admin=True)
    assert await kept.count() == 0


async def test_who_is_no_platform_admin_drops_no_day(world: World) -> None:
    series = await world.aged(700, tenant_id=uuid4())
    did = await world.run(dry_run=False)
    assert did["days"] == []
    assert await series.count() == 1


async def test_a_day_that_is_being_read_stays_until_the_next_run(world: World) -> None:
    day = ago(550).date()
    series = await world.aged(550)
    reader = await asyncpg.connect(world.past.urls.admin)
    try:
        async with reader.transaction():
            await reader.fetch(f"SELECT * FROM historian.points_{day:%Y%m%d}")
            did = await world.run(dry_run=False, platform_admin=True)
            assert {"day": day.isoformat(), "busy": True}.items() <= next(
                d for d in did["days"] if d["day"] == day.isoformat()
            ).items()
    finally:
        await reader.close()
    assert await series.count() == 1
    assert day not in await days_told(world)
    await world.run(dry_run=False, platform_admin=True)
    assert await series.count() == 0


async def test_once_a_day_it_happens_by_itself(world: World) -> None:
    clock = SystemClock()
    daily = DailyErasure(world.app.state.erasure, clock)
    await world.keep(30)
    first = await world.aged(31)
    await daily.run()
    assert await first.count() == 0
    second = await world.aged(31)
    await daily.run()
    assert await second.count() == 1
    clock.offset = timedelta(days=1)
    await daily.run()
    assert await second.count() == 0


async def test_a_late_point_of_a_dropped_day_makes_the_day_anew(world: World) -> None:
    """The writer may not know yet that the day is gone: its points stray, and are found again."""
    series = await world.aged(800)
    await world.run(dry_run=False, platform_admin=True)
    await world.past.query(
        "INSERT INTO historian.points VALUES ($1, 5, $2, $3, 0)", ago(800), series.tenant, series.id
    )
    await world.past.query("SELECT historian.ensure_days($1, $1)", ago(800).date())
    [row] = await world.past.query(
        "SELECT tableoid::regclass::text AS part FROM historian.points WHERE series = $1", series.id
    )
    assert row["part"] == f"historian.points_{ago(800):%Y%m%d}"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT historian.drop_day((now() - interval '1 hour')::date)",
        "SELECT historian.drop_day((now() + interval '3 days')::date)",
        "SELECT historian.delete_expired(gen_random_uuid(), now(), 5)",
    ],
)
async def test_the_database_itself_refuses_to_erase_the_last_day(world: World, sql: str) -> None:
    connection = await asyncpg.connect(world.past.urls.engine("retention"))
    try:
        with pytest.raises(asyncpg.InvalidParameterValueError):
            await connection.execute(sql)
    finally:
        await connection.close()


@pytest.mark.parametrize("role", ["retention_rw", "ingest_engine", "historian_writer", "ml_rw"])
async def test_nobody_else_can_erase(world: World, role: str) -> None:
    connection = await asyncpg.connect(world.past.urls.role(role))
    try:
        for sql in (
            "SELECT historian.drop_day('2020-01-01')",
            "SELECT historian.delete_expired(gen_random_uuid(), '2020-01-01', 5)",
            "DELETE FROM historian.points",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(sql)
    finally:
        await connection.close()
