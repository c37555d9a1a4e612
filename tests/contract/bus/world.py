"""What the stories about the bus are told in: a world for each bus, and a listener that remembers."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import aiormq
import asyncpg
import msgspec
from pamqp.commands import Basic
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.base import Bus, Mode, Subscription
from libs.common.bus.local import MAX_BYTES, LocalBus
from libs.common.bus.rabbit import RabbitBus
from libs.common.bus.subscriptions import Subscriptions
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.db.transactions import Store, Transactions
from libs.common.events.base import Message

DEADLINE_S = 20.0
SHARDS = 2

CREATE_OUTBOX = """
    CREATE SCHEMA {schema};
    CREATE TABLE {schema}.outbox (
      seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      id uuid NOT NULL,
      tenant_id uuid,
      shard int,
      type text NOT NULL,
      source text NOT NULL,
      time timestamptz NOT NULL,
      traceparent text,
      body bytea NOT NULL
    );
"""

CREATE_INBOX = """
    CREATE SCHEMA IF NOT EXISTS {schema};
    CREATE TABLE {schema}.inbox (
      subscription text NOT NULL,
      event_id uuid NOT NULL,
      handled_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (subscription, event_id)
    );
    CREATE TABLE {schema}.done (
      seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      tenant_id uuid NOT NULL,
      word text NOT NULL,
      transaction bigint NOT NULL DEFAULT txid_current()
    );
"""


async def eventually(holds: Callable[[], object], what: str = "the condition") -> None:
    """Return as soon as the condition holds; fail after the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not holds():
        assert loop.time() < deadline, f"{what} did not come about in {DEADLINE_S} s"
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class DeadLetter:
    """A message that was given up, with why."""

    id: UUID
    body: bytes
    reason: str


class Listener:
    """A service's handler: remembers what it was given, and may be told to misbehave first."""

    def __init__(self, before: Callable[[Sequence[str]], Awaitable[None]] | None = None) -> None:
        self.calls: list[list[str]] = []
        self.done: list[str] = []
        self.messages: list[Message] = []
        self._before = before

    async def __call__(self, messages: Sequence[Message]) -> None:
        said = [message.body.decode() for message in messages]
        self.calls.append(said)
        if self._before is not None:
            await self._before(said)
        self.done += said
        self.messages += messages

    async def hears(self, *said: str) -> None:
        """Wait until all of these were handled."""
        await eventually(lambda: set(said) <= set(self.done), f"hearing {said}, not {self.done}")


class World(ABC):
    """A place where buses of one kind live. Names made here are found in no other test."""

    def __init__(self) -> None:
        self.mark = uuid4().hex[:10]
        self.tenant_id = uuid4()
        self.schema = f"story_{self.mark}"
        self._buses: list[Bus] = []

    @abstractmethod
    def _new_bus(self, *, relay: bool) -> Bus: ...

    @abstractmethod
    async def dead_letters(self, subscription: Subscription) -> list[DeadLetter]:
        """Return the subscription's dead letters, leaving them where they lie."""

    async def dead_letters_come(self, subscription: Subscription) -> list[DeadLetter]:
        """Wait until the subscription has a dead letter, and return all it has."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if letters := await self.dead_letters(subscription):
                    return letters
                await asyncio.sleep(0.02)

    @abstractmethod
    def transaction(self) -> contextlib.AbstractAsyncContextManager[AsyncConnection]:
        """Open a transaction of the service whose outbox is `self.schema`."""

    @property
    @abstractmethod
    def database(self) -> Database:
        """The database of the service whose outbox, and inbox, is `self.schema`."""

    @abstractmethod
    async def close(self) -> None: ...

    async def create_inbox(self) -> None:
        """Create the service's inbox, and a table of what it has done."""
        async with self.database.connection() as connection:
            for statement in CREATE_INBOX.format(schema=self.schema).split(";")[:-1]:
                await connection.exec_driver_sql(statement)

    def type(self, name: str = "pump.started") -> str:
        """Return an event type of this test's own."""
        return f"{name}_{self.mark}.v1"

    def subscription(
        self,
        name: str,
        *types: str,
        mode: Mode = Mode.SHARED,
        sharded: bool = False,
        batch: int = 1,
        attempts: int = 5,
    ) -> Subscription:
        """Return a subscription of this test's own, to `pump.started` unless told otherwise."""
        return Subscription(
            name=f"{name}.{self.mark}",
            types=frozenset(types or {self.type()}),
            mode=mode,
            sharded=sharded,
            batch=batch,
            attempts=attempts,
        )

    def message(self, said: str, *, of: str | None = None, shard: int | None = None) -> Message:
        """Return a message that says this: a `pump.started` unless `of` another type."""
        return Message(
            id=uuid4(),
            type=of or self.type(),
            source="tests",
            time=datetime.now(UTC),
            tenant_id=self.tenant_id if shard is None else None,
            shard=shard,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            body=said.encode(),
        )

    async def service(
        self, *listens: tuple[Subscription, Callable[[Sequence[Message]], Awaitable[None]]]
    ) -> Bus:
        """Start a replica of a service that listens so."""
        bus = self._new_bus(relay=False)
        return await self._start(bus, listens)

    async def service_with_outbox(
        self, *listens: tuple[Subscription, Callable[[Sequence[Message]], Awaitable[None]]]
    ) -> Bus:
        """Start a replica that also empties the outbox of `self.schema`."""
        bus = self._new_bus(relay=True)
        return await self._start(bus, listens)

    async def service_of(self, subscriptions: Subscriptions[Store]) -> Bus:
        """Start a replica of the service whose handlers these are."""
        bus = self._new_bus(relay=True)
        subscriptions.attach(bus, Transactions(self.database, bus.outbox(self.schema), Store))
        return await self._start(bus, ())

    async def say(self, bus: Bus, *said: str) -> None:
        """Publish a `pump.started` for each word, in one call."""
        await bus.publish([self.message(word) for word in said])

    async def stop_all(self) -> None:
        """Stop every bus started here."""
        for bus in self._buses:
            await bus.stop()

    async def _start(
        self,
        bus: Bus,
        listens: Sequence[tuple[Subscription, Callable[[Sequence[Message]], Awaitable[None]]]],
    ) -> Bus:
        for subscription, handle in listens:
            bus.subscribe(subscription, handle)
        self._buses.append(bus)
        await bus.start()
        return bus


class RabbitWorld(World):
    """RabbitMQ, and PostgreSQL for the outbox."""

    def __init__(
        self, url: str, database_url: str, *, queue_max_bytes: int = 64 * 1024 * 1024
    ) -> None:
        super().__init__()
        self.url = self._own_url = url
        self.queue_max_bytes = queue_max_bytes
        self.start_s = 30.0
        self._database_url = database_url
        self._database: Database | None = None
        self._subscribed = {f"{self.schema}.events", f"{self.schema}.events.dead"}

    def subscription(
        self,
        name: str,
        *types: str,
        mode: Mode = Mode.SHARED,
        sharded: bool = False,
        batch: int = 1,
        attempts: int = 5,
    ) -> Subscription:
        made = super().subscription(
            name, *types, mode=mode, sharded=sharded, batch=batch, attempts=attempts
        )
        self._subscribed |= {made.name, f"{made.name}.dead"}
        self._subscribed |= {f"{made.name}.{shard}" for shard in range(SHARDS)}
        return made

    async def dead_letters(self, subscription: Subscription) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        async with self.channel() as channel:
            while True:
                got = await channel.basic_get(f"{subscription.name}.dead")
                if isinstance(got.delivery, Basic.GetEmpty):
                    return found
                headers = got.header.properties.headers or {}
                found.append(
                    DeadLetter(
                        id=UUID(got.header.properties.message_id),
                        body=got.body,
                        reason=f"{headers.get('x-reason')!s}: {headers.get('x-error')!s}",
                    )
                )

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[aiormq.abc.AbstractChannel]:
        """Open a channel of the test's own; what it took unacknowledged goes back at the end."""
        async with aiormq.connect(self.url) as connection:
            yield await connection.channel()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self.database.connection() as connection:
            yield connection

    async def create_outbox(self) -> None:
        """Create the schema whose outbox the service has."""
        connection = await asyncpg.connect(self._database_url)
        try:
            await connection.execute(CREATE_OUTBOX.format(schema=self.schema))
        finally:
            await connection.close()

    async def close(self) -> None:
        await self.stop_all()
        if self._database is not None:
            await self._database.close()
        self.url = self._own_url
        async with self.channel() as channel:
            for name in self._subscribed:
                await channel.queue_delete(name)

    @property
    def database(self) -> Database:
        if self._database is None:
            self._database = Database(self._database_url, across_tenants=True)
        return self._database

    def _new_bus(self, *, relay: bool) -> RabbitBus:
        return RabbitBus(
            self.url,
            service="tests",
            shards=SHARDS,
            relays={self.schema: self.database} if relay else {},
            queue_max_bytes=self.queue_max_bytes,
            start_s=self.start_s,
            stop_s=0.5,
        )


class LocalWorld(World):
    """The log in PostgreSQL."""

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self.max_bytes = MAX_BYTES
        self._database_url = database_url
        self._database = Database(database_url, across_tenants=True)

    @property
    def database(self) -> Database:
        return self._database

    async def dead_letters(self, subscription: Subscription) -> list[DeadLetter]:
        connection = await asyncpg.connect(self._database_url)
        try:
            rows = await connection.fetch(
                "SELECT id, reason, message FROM bus.dead_letters WHERE subscriber = $1",
                subscription.name,
            )
        finally:
            await connection.close()
        return [
            DeadLetter(
                id=row["id"],
                body=msgspec.msgpack.decode(row["message"], type=Message).body,
                reason=row["reason"],
            )
            for row in rows
        ]

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._database.connection() as connection:
            yield connection

    async def close(self) -> None:
        await self.stop_all()
        await self._database.close()

    async def log(
        self, *listens: tuple[Subscription, Callable[[Sequence[Message]], Awaitable[None]]]
    ) -> LocalBus:
        """Start a service as `service` does, and return its bus as what it is."""
        bus = await self.service(*listens)
        assert isinstance(bus, LocalBus)
        return bus

    def _new_bus(self, *, relay: bool) -> LocalBus:
        return LocalBus(self._database_url, SystemClock(), max_bytes=self.max_bytes)
