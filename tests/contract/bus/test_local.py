"""What may go wrong with the edge's log in particular: a PostgreSQL that hangs, floods, slow readers."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from libs.common.bus import local
from libs.common.bus.base import Mode
from libs.common.errors import Unavailable
from tests.contract.bus.world import Listener, LocalWorld, eventually
from tests.waiting import until

APPEND_LOCK = 7301001


@pytest.fixture
async def world(
    bus_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalWorld]:
    """A world on the log alone."""
    monkeypatch.setattr(local, "STOP_S", 0.5)
    monkeypatch.setattr(local, "CLOSE_S", 0.5)
    world = LocalWorld(bus_database_url)
    yield world
    await world.close()


@pytest.fixture
async def admin(bus_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(bus_database_url)
    yield connection
    await connection.close()


async def test_a_log_that_hangs_is_unavailable_within_a_bounded_time(
    world: LocalWorld, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PUBLISH_S", 0.3)
    listener = Listener()
    bus = await world.service((world.subscription("rules.pumps"), listener))
    async with admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock($1)", APPEND_LOCK)
        for said in ("one", "two", "three"):
            with pytest.raises(Unavailable):
                async with asyncio.timeout(5):
                    await world.say(bus, said)
    monkeypatch.setattr(local, "PUBLISH_S", 10.0)
    await world.say(bus, "four")
    await listener.hears("four")
    assert not {"two", "three"} & set(listener.done), (
        "what was given up piled up, and came after all"
    )


async def test_stopping_while_the_log_hangs_ends_and_tells_those_who_publish(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    bus = await world.service()
    async with admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock($1)", APPEND_LOCK)
        publishing = [asyncio.create_task(world.say(bus, "one"))]
        await asyncio.sleep(0.05)
        publishing.append(asyncio.create_task(world.say(bus, "two")))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await bus.stop()
            results = await asyncio.gather(*publishing, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable, Unavailable]


async def test_one_publishers_bad_message_fails_alone(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    listener = Listener()
    bus = await world.service((world.subscription("rules.pumps"), listener))
    async with admin.transaction():
        await admin.execute("SELECT pg_advisory_xact_lock($1)", APPEND_LOCK)
        first = asyncio.create_task(world.say(bus, "first"))
        await asyncio.sleep(0.05)
        # These wait behind the first and would go in one transaction.
        good = [asyncio.create_task(world.say(bus, f"{n}")) for n in range(2)]
        await asyncio.sleep(0)
        bad = asyncio.create_task(bus.publish([world.message("bad", of="with\0nul")]))
        await asyncio.sleep(0)
        good.append(asyncio.create_task(world.say(bus, "2")))
        await asyncio.sleep(0)
    await asyncio.gather(first, *good)
    with pytest.raises(asyncpg.PostgresError):
        await bad
    await listener.hears("first", "0", "1", "2")
    assert listener.done == ["first", "0", "1", "2"]


async def test_a_flood_between_two_looks_at_the_partitions_finds_room(world: LocalWorld) -> None:
    """The first look is at the start, the next in ten seconds."""
    bus = await world.service()
    for _ in range(16):
        await world.say(bus, *map(str, range(2_500)))


async def test_a_replica_that_is_slow_loses_nothing_to_the_trimming(
    world: LocalWorld, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TRIM_S", 0.05)
    await admin.execute("DELETE FROM bus.subscribers")
    gate = asyncio.Event()

    async def wait_at_the_gate(said: Sequence[str]) -> None:
        await gate.wait()

    slow, quick = Listener(before=wait_at_the_gate), Listener()
    subscription = world.subscription("gateway.live", mode=Mode.PER_REPLICA, batch=100)
    bus = await world.service((subscription, slow), (world.subscription("rules", batch=100), quick))
    for _ in range(10):
        await world.say(bus, *map(str, range(2_000)))
    await eventually(lambda: len(quick.done) == 20_000)
    before = await admin.fetchval("SELECT last_value FROM bus.position")
    await eventually(lambda: bus._subscribers[1].saved >= before)  # type: ignore[attr-defined]  # a LocalBus
    await asyncio.sleep(0.3)
    gate.set()
    await eventually(lambda: len(slow.done) == 20_000, "the slow one hears everything")


async def test_what_everyone_has_read_is_dropped(
    world: LocalWorld, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TRIM_S", 0.05)
    await admin.execute("DELETE FROM bus.subscribers")
    listener = Listener()
    bus = await world.service((world.subscription("rules", batch=256), listener))
    first = await admin.fetchval("SELECT last_value FROM bus.position")
    for _ in range(10):
        await world.say(bus, *map(str, range(2_000)))

    async def is_dropped() -> bool:
        oldest = await admin.fetchval("SELECT coalesce(min(position), 0) FROM bus.log")
        return bool(oldest > first + 8_192)

    await until(is_dropped, "the oldest partition dropped")


async def test_losing_every_connection_interrupts_and_loses_nothing(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    listener = Listener()
    bus = await world.service((world.subscription("rules.pumps"), listener))
    said = []
    for number in range(60):
        if number % 20 == 10:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'iiot-bus' AND datname = current_database()"
            )
        try:
            await world.say(bus, f"{number}")
        except Unavailable:
            continue
        said.append(f"{number}")
    assert len(said) > 50
    await listener.hears(*said)


async def test_a_hanging_log_is_not_ready(
    world: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "CHECK_S", 0.2)
    bus = await world.service()
    taken = [await bus._pool.acquire() for _ in range(8)]  # type: ignore[attr-defined]  # a LocalBus
    try:
        with pytest.raises(Unavailable):
            async with asyncio.timeout(5):
                await bus.check()
    finally:
        for connection in taken:
            await bus._pool.release(connection)  # type: ignore[attr-defined]  # a LocalBus
