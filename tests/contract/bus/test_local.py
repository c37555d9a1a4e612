"""What may go wrong with the edge's log in particular: a PostgreSQL that hangs, floods, slow readers."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from libs.common.bus import local
from libs.common.bus.base import Mode, Subscription
from libs.common.errors import Invalid, Unavailable
from tests.contract.bus.world import Listener, LocalWorld, eventually
from tests.waiting import until

APPEND_LOCK = 7301001
MIB = 1024**2
ARCHITECTURE = Path(__file__).parents[3] / "ARCHITECTURE.md"


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
                async with asyncio.timeout(30):
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
        await until(lambda: _waits_to_append(admin), "the first waits for the lock")
        publishing.append(asyncio.create_task(world.say(bus, "two")))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
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
        await until(lambda: _waits_to_append(admin), "the first waits for the lock")
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


async def test_a_flood_finds_room(world: LocalWorld) -> None:
    """Those who publish make it; one message alone may need more of it than lies ahead."""
    bus = await world.service()
    await bus.publish([world.message("flood") for _ in range(40_000)])
    for _ in range(16):
        await world.say(bus, *map(str, range(2_500)))


async def test_a_replica_that_is_slow_loses_nothing_to_the_trimming(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    await admin.execute("DELETE FROM bus.subscribers")
    gate = asyncio.Event()

    async def wait_at_the_gate(said: Sequence[str]) -> None:
        await gate.wait()

    slow, quick = Listener(before=wait_at_the_gate), Listener()
    subscription = world.subscription("gateway.live", mode=Mode.PER_REPLICA, batch=100)
    bus = await world.log((subscription, slow), (world.subscription("rules", batch=100), quick))
    first = await admin.fetchval("SELECT last_value FROM bus.position")
    for _ in range(10):
        await world.say(bus, *map(str, range(2_000)))
    await eventually(lambda: len(quick.done) == 20_000)
    await bus.trim()
    assert await _is_kept(admin, first + 1)
    gate.set()
    await eventually(lambda: len(slow.done) == 20_000, "the slow one hears everything")
    await bus.trim()
    assert not await _is_kept(admin, first + 1)


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
        return not await _is_kept(admin, first + 1)

    await until(is_dropped, "the oldest partition dropped")


async def test_who_reads_the_log_for_long_stops_nobody(
    world: LocalWorld,
    admin: asyncpg.Connection,
    bus_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a backup does: it has a lock on every table until it has read the last one."""
    monkeypatch.setattr(local, "TRIM_S", 0.05)
    await admin.execute("DELETE FROM bus.subscribers")
    listener = Listener()
    bus = await world.log((world.subscription("rules", batch=256), listener))
    outbox = bus.outbox(world.schema)
    first = await admin.fetchval("SELECT last_value FROM bus.position")
    reader = await asyncpg.connect(bus_database_url)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT FROM bus.log")
            for _ in range(15):
                async with asyncio.timeout(30):
                    await world.say(bus, *map(str, range(2_000)))
                    async with world.transaction() as connection:
                        await outbox.write(connection, [world.message("in a transaction")])
            await eventually(lambda: len(listener.done) == 30_015)
            await bus.trim()
            assert await _is_kept(admin, first + 1)
    finally:
        await reader.close()

    async def is_dropped() -> bool:
        return not await _is_kept(admin, first + 1)

    await until(is_dropped, "the oldest partition dropped after all")


async def test_what_is_not_committed_yet_is_not_taken_for_read(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    """A message has its place before its transaction ends; dropping waits for it, and looks again."""
    await admin.execute("DELETE FROM bus.subscribers")
    listener = Listener()
    bus = await world.log((world.subscription("rules"), listener))
    await admin.execute("ALTER FUNCTION bus.drop_read SET lock_timeout = '10s'")
    try:
        async with world.transaction() as connection:
            await bus.outbox(world.schema).write(connection, [world.message("late")])
            # As if it were the last one of its partition.
            await admin.execute(
                "SELECT setval('bus.position', last_value / 8192 * 8192 + 8191) FROM bus.position"
            )
            trimming = asyncio.create_task(bus.trim())
            await until(lambda: _waits_for_the_log(admin), "the trimming waits")
        await trimming
    finally:
        await admin.execute("ALTER FUNCTION bus.drop_read SET lock_timeout = '200ms'")
    await listener.hears("late")


async def test_a_full_log_refuses_what_is_published_until_it_is_read(
    world: LocalWorld, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TRIM_S", 0.05)
    await admin.execute("DELETE FROM bus.subscribers")
    gate = asyncio.Event()

    async def wait_at_the_gate(said: Sequence[str]) -> None:
        await gate.wait()

    listener = Listener(before=wait_at_the_gate)
    world.max_bytes = await _bytes_now(world) + 8 * MIB
    bus = await world.log((world.subscription("rules"), listener))
    said = [f"{number} {secrets.token_hex(MIB // 2)}" for number in range(16)]
    published: list[str] = []
    while not bus.is_full:
        published.append(said.pop())
        await world.say(bus, published[-1])
        await bus.trim()
    assert len(published) >= 4
    with pytest.raises(Unavailable, match="full"):
        await world.say(bus, said.pop())
    with pytest.raises(Unavailable, match="full"):
        await bus.check()
    assert bus.behind()[bus._subscribers[0].name] >= len(published)
    # What was begun can be ended: handlers have things to say, and would wait for themselves.
    async with world.transaction() as connection:
        await bus.outbox(world.schema).write(connection, [world.message("in a transaction")])

    gate.set()
    await listener.hears(*published, "in a transaction")
    await until(lambda: not bus.is_full, "there is room again")
    await world.say(bus, "the next")
    await listener.hears("the next")
    await bus.check()


async def test_dead_letters_are_kept_and_count(world: LocalWorld) -> None:
    async def refuse(said: Sequence[str]) -> None:
        raise Invalid("no such metric")

    subscription = world.subscription("rules")
    world.max_bytes = await _bytes_now(world) + 64 * MIB
    bus = await world.log((subscription, Listener(before=refuse)))
    said = [f"{number} {secrets.token_hex(MIB // 2)}" for number in range(4)]
    before = bus.kept.dead_letters_bytes
    await world.say(bus, *said)

    async def are_dead() -> bool:
        await bus.trim()
        return bus.kept.dead_letters.get(subscription.name) == len(said)

    await until(are_dead, "the dead letters are counted")
    assert bus.kept.dead_letters_bytes >= before + 4 * MIB
    bus.max_bytes = bus.kept.log_bytes + bus.kept.retries_bytes + 4 * MIB
    with pytest.raises(Unavailable, match="full"):
        await world.say(bus, "one more")
    assert [letter.body.decode() for letter in await world.dead_letters(subscription)] == said


async def test_dead_letters_that_are_put_back_are_tried_again(
    world: LocalWorld, admin: asyncpg.Connection
) -> None:
    """As ARCHITECTURE.md tells the operators."""
    mended = False

    async def refuse_until_mended(said: Sequence[str]) -> None:
        if not mended:
            raise Invalid("no such metric")

    subscription, listener = world.subscription("rules"), Listener(before=refuse_until_mended)
    bus = await world.log((subscription, listener))
    await world.say(bus, "one", "two")
    await until(lambda: _dead(world, subscription, 2), "both are dead letters")
    await eventually(lambda: not bus._subscribers[0].retry_due, "it looks for retries no more")
    mended = True
    [put_back] = [
        block
        for block in ARCHITECTURE.read_text().split("```")
        if "INSERT INTO bus.retries" in block
    ]
    await admin.execute(put_back.removeprefix("sql").replace("rules.events", subscription.name))
    await bus.trim()
    await listener.hears("one", "two")
    assert await world.dead_letters(subscription) == []
    assert sorted(listener.done) == ["one", "two"]


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
            async with asyncio.timeout(30):
                await bus.check()
    finally:
        for connection in taken:
            await bus._pool.release(connection)  # type: ignore[attr-defined]  # a LocalBus


async def _dead(world: LocalWorld, subscription: Subscription, count: int) -> bool:
    return len(await world.dead_letters(subscription)) == count


async def _is_kept(admin: asyncpg.Connection, position: int) -> bool:
    kept: bool = await admin.fetchval(
        "SELECT EXISTS (SELECT FROM bus.log WHERE position = $1)", position
    )
    return kept


async def _bytes_now(world: LocalWorld) -> int:
    """Return what other tests have left behind; the log is everybody's."""
    bus = await world.log()
    await bus.trim()
    await bus.stop()
    return bus.kept.total_bytes


async def _waits_to_append(admin: asyncpg.Connection) -> bool:
    waits: bool = await admin.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = $1::int"
        " AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        APPEND_LOCK,
    )
    return waits


async def _waits_for_the_log(admin: asyncpg.Connection) -> bool:
    waits: bool = await admin.fetchval(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'bus.log'::regclass"
        " AND mode = 'AccessExclusiveLock' AND NOT granted)"
    )
    return waits
