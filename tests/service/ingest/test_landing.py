"""Batches come to rest in the historian: once, whole, and each point beside its neighbours."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import numpy as np
import pytest

from libs.common.errors import Unavailable
from libs.common.events.ingest import Refused, TelemetryReceived, Text
from libs.common.historian import writer
from services.ingest.store.landing import NEW_DAYS_AT_ONCE, Landing, QuarantineQuota
from tests.database import DatabaseUrls
from tests.waiting import until

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)


class Historian:
    """The historian with one tenant's series, made by hand."""

    def __init__(self, connection: asyncpg.Connection, landing: Landing) -> None:
        self.connection = connection
        self.landing = landing
        self.tenant_id = uuid4()
        self.device_id = uuid4()
        self.tenant = 0
        self.series = 0
        self.texts = 0

    async def prepare(self) -> None:
        self.tenant = await self.connection.fetchval(
            "SELECT historian.tenant_number($1)", self.tenant_id
        )
        add = (
            "INSERT INTO historian.series (tenant, device_id, metric, kind)"
            " VALUES ($1, $2, $3, $4) RETURNING id"
        )
        self.series = await self.connection.fetchval(add, self.tenant, self.device_id, "temp", 0)
        self.texts = await self.connection.fetchval(add, self.tenant, self.device_id, "mode", 2)

    def batch(
        self,
        *points: tuple[datetime, float],
        texts: tuple[Text, ...] = (),
        refused: tuple[Refused, ...] = (),
    ) -> TelemetryReceived:
        count = len(points)
        times = [round(moment.timestamp() * 1_000_000) for moment, _ in points]
        return TelemetryReceived(
            at=NOON,
            shard=0,
            tenants=np.full(count, self.tenant, "<i4").tobytes(),
            series=np.full(count, self.series, "<i4").tobytes(),
            ts=np.array(times, "<i8").tobytes(),
            values=np.array([value for _, value in points], "<f8").tobytes(),
            quality=bytes(count),
            texts=texts,
            refused=refused,
        )

    async def stored(self) -> list[tuple[datetime, float]]:
        rows = await self.connection.fetch(
            "SELECT ts, value FROM historian.points WHERE tenant = $1 ORDER BY ts", self.tenant
        )
        return [(row["ts"], row["value"]) for row in rows]

    async def quarantined(self) -> list[asyncpg.Record]:
        return await self.connection.fetch(
            "SELECT * FROM ingest.quarantine WHERE tenant_id = $1", self.tenant_id
        )


@pytest.fixture
async def historian(database_urls: DatabaseUrls) -> AsyncIterator[Historian]:
    connection = await asyncpg.connect(database_urls.admin)
    landing = Landing(database_urls.writer, quota=QuarantineQuota())
    await landing.open()
    historian = Historian(connection, landing)
    await historian.prepare()
    yield historian
    await landing.close()
    await connection.close()


def seconds(count: int, start: datetime = NOON) -> list[tuple[datetime, float]]:
    return [(start + timedelta(seconds=n), float(n)) for n in range(count)]


async def test_points_arrive_exactly(historian: Historian) -> None:
    exact = NOON + timedelta(microseconds=1)
    points = [(exact, 1e-300), (exact + timedelta(microseconds=1), -0.1)]
    landed = await historian.landing.land([historian.batch(*points)])
    assert (landed.stored, landed.duplicates, landed.quarantined) == (2, 0, 0)
    assert await historian.stored() == points


async def test_a_batch_that_comes_twice_is_stored_once(historian: Historian) -> None:
    refused = Refused(historian.tenant_id, historian.device_id, "clock_ahead", "", "temp", b"{}")
    batch = historian.batch(*seconds(3), refused=(refused,))
    await historian.landing.land([batch])
    landed = await historian.landing.land([batch, historian.batch(*seconds(5))])
    assert (landed.replayed, landed.stored, landed.duplicates) == (1, 2, 3)
    assert await historian.stored() == seconds(5)
    assert len(await historian.quarantined()) == 1


async def test_the_first_value_of_an_instant_wins(historian: Historian) -> None:
    await historian.landing.land([historian.batch((NOON, 1.0))])
    landed = await historian.landing.land(
        [historian.batch((NOON, 2.0), (NOON + timedelta(seconds=1), 3.0))]
    )
    assert (landed.stored, landed.duplicates) == (1, 1)
    assert [value for _, value in await historian.stored()] == [1.0, 3.0]


async def test_a_poisonous_point_is_quarantined_and_its_neighbours_are_stored(
    historian: Historian,
) -> None:
    await historian.connection.execute(
        f"ALTER TABLE historian.points ADD CONSTRAINT poison"
        f" CHECK (series <> {historian.series} OR value <> 13)"
    )
    try:
        landed = await historian.landing.land([historian.batch(*seconds(40))])
    finally:
        await historian.connection.execute("ALTER TABLE historian.points DROP CONSTRAINT poison")
    assert (landed.stored, landed.quarantined) == (39, 1)
    assert [value for _, value in await historian.stored()] == [
        float(n) for n in range(40) if n != 13
    ]
    [entry] = await historian.quarantined()
    assert (entry["reason"], entry["metric"]) == ("refused_by_store", "temp")
    assert "poison" in entry["detail"]
    assert b"13.0" in entry["payload"]


async def test_texts_are_stored_once(historian: Historian) -> None:
    text = Text(historian.tenant, historian.texts, round(NOON.timestamp() * 1_000_000), "auto", 0)
    await historian.landing.land([historian.batch(texts=(text,))])
    landed = await historian.landing.land([historian.batch(texts=(text,))])
    assert landed.duplicates == 1
    rows = await historian.connection.fetch(
        "SELECT value FROM historian.texts WHERE tenant = $1", historian.tenant
    )
    assert [row["value"] for row in rows] == ["auto"]


async def test_any_day_gets_its_partition_before_its_first_point(historian: Historian) -> None:
    long_ago = NOON - timedelta(days=200)
    await historian.landing.land([historian.batch((long_ago, 1.0), (NOON, 2.0))])
    assert [moment for moment, _ in await historian.stored()] == [long_ago, NOON]
    assert await historian.landing.count_strays() == 0


async def test_a_message_that_spans_many_days_keeps_nobody_waiting_and_loses_nothing(
    historian: Historian,
) -> None:
    landing = historian.landing
    await landing.make_days_ahead(NOON.date())
    before = await _days(historian)
    spread = [(NOON - timedelta(days=220 + n), float(n)) for n in range(60)]
    assert (await landing.land([historian.batch(*spread, (NOON, 1.0))])).stored == 61
    assert await _days(historian) == before + NEW_DAYS_AT_ONCE
    assert await historian.stored() == sorted([*spread, (NOON, 1.0)])
    assert await landing.count_strays() == 60 - NEW_DAYS_AT_ONCE

    # Sent again, they are known; by and by each day gets its partition, and they move there.
    assert (await landing.land([historian.batch(*spread[::-1])])).stored == 0
    for _ in range(3):
        await landing.house_strays()
    assert await landing.count_strays() == 0
    assert await _days(historian) == before + 60
    assert await historian.stored() == sorted([*spread, (NOON, 1.0)])


async def _days(historian: Historian) -> int:
    days: int = await historian.connection.fetchval("SELECT count(*) FROM historian.days()")
    return days


async def test_strays_of_a_day_that_was_dropped_move_home_without_another_point(
    historian: Historian,
) -> None:
    moment = NOON - timedelta(days=300)
    await historian.landing.land([historian.batch((moment, 1.0))])
    for table in ("points", "texts"):
        await historian.connection.execute(f"DROP TABLE historian.{table}_{moment:%Y%m%d}")
    await historian.landing.land([historian.batch((moment, 2.0))])
    assert await historian.landing.count_strays() == 1
    await historian.landing.house_strays()
    assert await historian.landing.count_strays() == 0
    assert await historian.stored() == [(moment, 2.0)]


async def test_points_beside_all_partitions_are_counted(historian: Historian) -> None:
    await historian.connection.execute(
        "INSERT INTO historian.points VALUES ('1999-01-01Z', 1, $1, $2, 0)",
        historian.tenant,
        historian.series,
    )
    try:
        assert await historian.landing.count_strays() == 1
    finally:
        await historian.connection.execute(
            "DELETE FROM historian.points WHERE tenant = $1", historian.tenant
        )


async def test_the_writer_may_insert_and_read_no_point(
    historian: Historian, database_urls: DatabaseUrls
) -> None:
    connection = await asyncpg.connect(database_urls.writer)
    try:
        for statement in (
            "SELECT ts FROM historian.points",
            "SELECT value FROM historian.points",
            "SELECT tenant FROM historian.texts",
            "SELECT 1 FROM ingest.ledger_log",
            "SELECT 1 FROM ingest.ledger",
            "SELECT 1 FROM ingest.quarantine",
            "SELECT 1 FROM ingest.devices",
            "DELETE FROM historian.points",
            "UPDATE historian.points SET value = 0",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_text_that_postgresql_cannot_hold_takes_no_neighbour_with_it(
    historian: Historian,
) -> None:
    refused = Refused(
        historian.tenant_id, historian.device_id, "unknown_field", "a\0b", "te\0mp", b"{\0}"
    )
    landed = await historian.landing.land([historian.batch(*seconds(3), refused=(refused,))])
    assert (landed.stored, landed.quarantined) == (3, 1)
    [entry] = await historian.quarantined()
    assert (entry["detail"], entry["metric"], entry["payload"]) == (
        "a\ufffdb",
        "te\ufffdmp",
        b"{\0}",
    )


async def test_points_of_a_day_whose_partition_was_dropped_are_stored_and_then_moved_home(
    historian: Historian, database_urls: DatabaseUrls
) -> None:
    day = (NOON - timedelta(days=150)).date()
    await historian.landing.land([historian.batch((NOON - timedelta(days=150), 1.0))])
    # Retention drops the day; this writer still believes that there is a partition.
    for table in ("points", "texts"):
        await historian.connection.execute(f"DROP TABLE historian.{table}_{day:%Y%m%d}")
    moment = NOON - timedelta(days=150) + timedelta(seconds=1)
    assert (await historian.landing.land([historian.batch((moment, 2.0))])).stored == 1

    await historian.landing.make_days_ahead(NOON.date())
    later = moment + timedelta(seconds=1)
    assert (await historian.landing.land([historian.batch((later, 3.0))])).stored == 1

    assert await historian.stored() == [(moment, 2.0), (later, 3.0)]
    assert await historian.landing.count_strays() == 0


async def test_a_reader_who_never_ends_keeps_no_point_from_being_stored(
    historian: Historian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new partition needs a lock that the reader's transaction stands in the way of."""
    monkeypatch.setattr(writer, "LOCKED_PAUSE_S", 0.0)
    long_ago = NOON - timedelta(days=160)
    async with historian.connection.transaction():
        await historian.connection.execute("SELECT count(*) FROM historian.points")
        landed = await asyncio.wait_for(
            historian.landing.land([historian.batch((long_ago, 1.0))]), 20
        )
    assert landed.stored == 1
    await historian.landing.land([historian.batch((long_ago + timedelta(seconds=1), 2.0))])
    assert [value for _, value in await historian.stored()] == [1.0, 2.0]
    assert await historian.landing.count_strays() == 0


async def test_a_reader_who_never_ends_is_not_waited_for_by_the_days_ahead(
    historian: Historian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for him lets all other readers wait behind."""
    monkeypatch.setattr(writer, "LOCKED_PAUSE_S", 0.0)
    today = (NOON + timedelta(days=500)).date()
    async with historian.connection.transaction():
        await historian.connection.execute("SELECT count(*) FROM historian.points")
        await asyncio.wait_for(historian.landing.make_days_ahead(today), 20)

    async def are_made() -> bool:
        # Again and again, as the job does: the server's own autovacuum may stand in the way too.
        await historian.landing.make_days_ahead(today)
        days = {day for (day,) in await historian.connection.fetch("SELECT historian.days()")}
        return {today - timedelta(days=1), today, today + timedelta(days=7)} <= days

    await until(are_made, "the days ahead are made once he has ended")


async def test_a_table_that_refuses_everything_is_a_fault_of_ours_and_fills_no_quarantine(
    historian: Historian, database_urls: DatabaseUrls
) -> None:
    admin = historian.connection
    await admin.execute("REVOKE INSERT ON historian.points FROM historian_writer")
    try:
        with pytest.raises(Unavailable):
            await historian.landing.land([historian.batch(*seconds(3))])
    finally:
        await admin.execute("GRANT INSERT ON historian.points TO historian_writer")
    assert await historian.quarantined() == []
    assert (await historian.landing.land([historian.batch(*seconds(3))])).stored == 3
