"""A service's handlers on each bus: batches, of which each event shows once and in its tenant's order."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count, groupby
from typing import ClassVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from libs.common.bus.base import Bus, Subscription
from libs.common.bus.subscriptions import BATCH, Subscriptions
from libs.common.db.transactions import Store
from libs.common.errors import Conflict, Invalid, Unavailable
from libs.common.events.base import Event, to_message
from tests.contract.bus.world import Listener, World, eventually
from tests.waiting import until

Before = Callable[["Said"], Awaitable[None]]


class Said(Event, frozen=True, kw_only=True):
    """Somebody said a word."""

    type: ClassVar[str] = "test.said.v1"
    source: ClassVar[str] = "tests"
    word: str


class Repeated(Event, frozen=True, kw_only=True):
    """The service has repeated a word."""

    type: ClassVar[str] = "test.repeated.v1"
    source: ClassVar[str] = "tests"
    word: str


class Handling:
    """A service that writes down each word, in the transaction of its event."""

    def __init__(self, world: World) -> None:
        self._world = world

        # Types of this test's own: what another left behind is not heard here.
        class SaidHere(Said, frozen=True, kw_only=True):
            type: ClassVar[str] = world.type("test.said")

        class RepeatedHere(Repeated, frozen=True, kw_only=True):
            type: ClassVar[str] = world.type("test.repeated")

        self.said: type[Said] = SaidHere
        self.repeated: type[Repeated] = RepeatedHere
        self.gate = asyncio.Event()
        self.tries: list[str] = []

    async def replica(self, before: Before | None = None) -> Bus:
        """Start a replica. It stops at the word "gate" until that is opened."""
        subscriptions = Subscriptions[Store](self._world.schema)

        @subscriptions.on(self.said)
        async def on_said(event: Said, store: Store) -> None:
            self.tries.append(event.word)
            if event.word == "gate":
                await self.gate.wait()
            if before is not None:
                await before(event)
            await store.session.execute(
                text(f"INSERT INTO {self._world.schema}.done (tenant_id, word) VALUES (:t, :w)"),
                {"t": event.tenant_id, "w": event.word},
            )
            if event.word.startswith("repeat"):
                store.emit(self.repeated(tenant_id=event.tenant_id, at=event.at, word=event.word))

        return await self._world.service_of(subscriptions)

    def a(self, word: str, tenant_id: UUID | None = None) -> Said:
        """Return the event that somebody said a word."""
        return self.said(
            tenant_id=tenant_id or self._world.tenant_id, at=datetime.now(UTC), word=word
        )

    async def hears_at_once(self, bus: Bus, *events: Said) -> None:
        """Say these while the service is busy, so that they come to it as one batch."""
        await bus.publish([to_message(self.a("gate"))])
        await eventually(lambda: "gate" in self.tries, "the service is busy")
        await bus.publish([to_message(event) for event in events])
        self.gate.set()

    async def done(self, tenant_id: UUID | None = None) -> list[str]:
        """Return the words that were written down, in order."""
        return [word for word, _ in await self._rows(tenant_id)]

    async def numbers(self) -> list[int]:
        """Return the transactions that wrote them, in the order of writing."""
        return [number for _, number in await self._rows(None)]

    async def transactions(self) -> int:
        """Return how many transactions wrote them, but for that of the gate."""
        return len({number for word, number in await self._rows(None) if word != "gate"})

    async def has_done(self, *words: str) -> None:
        """Wait until all of these are written down."""

        async def all_are() -> bool:
            return set(words) <= set(await self.done())

        await until(all_are, f"{words} are done", within_s=20)

    async def _rows(self, tenant_id: UUID | None) -> list[tuple[str, int]]:
        async with self._world.database.connection() as connection:
            found = await connection.execute(
                text(
                    f"SELECT word, transaction FROM {self._world.schema}.done"
                    " WHERE tenant_id = coalesce(:t, tenant_id) ORDER BY seq"
                ),
                {"t": tenant_id},
            )
            return [(word, number) for word, number in found]

    @property
    def subscription(self) -> Subscription:
        """What its queue is called."""
        return Subscription(f"{self._world.schema}.events", frozenset({self.said.type}))


@pytest.fixture
async def handling(bus_world: World) -> Handling:
    await bus_world.create_inbox()
    return Handling(bus_world)


def words(amount: int) -> list[str]:
    """Return so many words, in their order."""
    return [f"word {number}" for number in range(amount)]


async def test_a_batch_is_one_transaction_and_keeps_the_order(handling: Handling) -> None:
    bus = await handling.replica()
    said = words(BATCH)
    await handling.hears_at_once(bus, *map(handling.a, said))
    await handling.has_done(*said)
    assert await handling.done() == ["gate", *said]
    # (How the messages fall into batches is the bus's; a transaction each it must not be.)
    assert await handling.transactions() <= BATCH // 4


async def test_the_same_event_twice_in_a_batch_shows_once(handling: Handling) -> None:
    bus = await handling.replica()
    twice, other = handling.a("twice"), handling.a("other")
    await handling.hears_at_once(bus, twice, other, twice, handling.a("end"))
    await handling.has_done("end")
    assert await handling.done() == ["gate", "twice", "other", "end"]
    assert await handling.transactions() == 1


async def test_poison_in_a_batch_is_a_dead_letter_and_its_neighbours_are_done_once(
    bus_world: World, handling: Handling
) -> None:
    async def refuse_poison(event: Said) -> None:
        if event.word == "word 13":
            raise Invalid("no such metric")

    bus = await handling.replica(refuse_poison)
    said = words(BATCH)
    await handling.hears_at_once(bus, *map(handling.a, said))
    await handling.has_done(said[-1])
    [letter] = await bus_world.dead_letters_come(handling.subscription)
    assert b"word 13" in letter.body
    assert "Invalid: no such metric" in letter.reason
    said.remove("word 13")
    assert await handling.done() == ["gate", *said]


async def test_what_is_so_already_takes_no_neighbour_of_its_batch_with_it(
    bus_world: World, handling: Handling
) -> None:
    async def know_already(event: Said) -> None:
        if event.word == "word 3":
            raise Conflict("it is so already")

    bus = await handling.replica(know_already)
    said = words(8)
    await handling.hears_at_once(bus, *map(handling.a, said))
    await handling.has_done(said[-1])
    said.remove("word 3")
    assert await handling.done() == ["gate", *said]
    assert await bus_world.dead_letters(handling.subscription) == []


async def test_a_failure_of_the_moment_in_a_batch_loses_nothing_and_does_nothing_twice(
    bus_world: World, handling: Handling
) -> None:
    async def be_away_twice(event: Said) -> None:
        if event.word == "word 13" and handling.tries.count("word 13") <= 2:
            raise Unavailable("the database is restarting")

    bus = await handling.replica(be_away_twice)
    said = words(BATCH)
    await handling.hears_at_once(bus, *map(handling.a, said))
    await handling.has_done(*said)
    assert handling.tries.count("word 13") == 3
    assert await handling.done() == ["gate", *said]
    assert await bus_world.dead_letters(handling.subscription) == []


async def test_tenants_of_a_batch_keep_their_own_order_and_do_not_fail_for_each_other(
    bus_world: World, handling: Handling
) -> None:
    good, bad = uuid4(), uuid4()
    failures = count(1)

    async def fail(event: Said) -> None:
        if event.tenant_id == bad and event.word == "word 2":
            raise Invalid("no such metric")
        if event.tenant_id == bad and event.word == "word 3" and next(failures) <= 2:
            raise Unavailable("not yet")

    bus = await handling.replica(fail)
    said = words(5)
    await handling.hears_at_once(
        bus, *(handling.a(word, tenant) for word in said for tenant in (good, bad))
    )
    await until(lambda: _has(handling, bad, said[-1]), "the last one is done", within_s=20)
    await until(lambda: _has(handling, good, said[-1]), "the last one is done", within_s=20)
    assert await handling.done(good) == said
    assert await handling.done(bad) == [word for word in said if word != "word 2"]
    [letter] = await bus_world.dead_letters_come(handling.subscription)
    assert b"word 2" in letter.body


async def _has(handling: Handling, tenant_id: UUID, word: str) -> bool:
    return word in await handling.done(tenant_id)


async def test_of_one_tenant_one_transaction_is_at_work_in_all_replicas(
    handling: Handling,
) -> None:
    bus = await handling.replica()
    await handling.replica()
    said = words(200)
    for start in range(0, len(said), 8):
        await bus.publish([to_message(handling.a(word)) for word in said[start : start + 8]])
    await handling.has_done(*said)
    assert sorted(await handling.done()) == sorted(said)
    # Each has written all it wrote before the next began.
    order = [number for number, _ in groupby(await handling.numbers())]
    assert len(order) > 1
    assert len(order) == len(set(order))


async def test_what_a_handler_says_belongs_to_the_trace_of_what_it_heard(
    bus_world: World, handling: Handling
) -> None:
    heard = Listener()
    bus = await handling.replica()
    await bus_world.service((bus_world.subscription("test.echo", handling.repeated.type), heard))
    traces = [f"00-{uuid4().hex}-b7ad6b7169203331-01" for _ in range(3)]
    await bus.publish(
        [
            to_message(handling.a(f"repeat {number}"), traceparent=trace)
            for number, trace in enumerate(traces)
        ]
    )
    await eventually(lambda: len(heard.messages) >= 3, "three were repeated")
    assert [message.traceparent for message in heard.messages] == traces
