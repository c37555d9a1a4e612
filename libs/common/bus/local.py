"""The edge's bus: a durable log in PostgreSQL, an offset for each subscriber.

Publishing returns after COMMIT, and every subscriber goes on at its own offset, so that an
acknowledgement means the same as on RabbitMQ. The outbox *is* the log here: an event emitted in
a transaction is appended by it. Appends are serialised (see `bus.append`), so that reading
"position > mine" skips nothing. Subscribers in this process are woken at once; a tick is the net
for what other processes append.

What everyone has read is dropped, a partition at a time. What waits to be tried again lies in a
table beside the log; so do the dead letters, until an operator puts them back or removes them.
What all of it may take on disk is bounded: at the bound `publish` refuses, so that devices are
pushed back before the disk is full, and nothing is dropped. The outbox goes on: those who empty the
log must be able to say what follows from it.
"""

import asyncio
import contextlib
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import msgspec
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.base import Bus, Handle, Mode, Outbox, Subscription
from libs.common.bus.counts import Counts
from libs.common.bus.outcome import Outcome, is_transient, outcome_of
from libs.common.clock import Clock
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.tasks import is_own_cancellation

LOST = (
    OSError,  # TimeoutError is one
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

log = structlog.get_logger(__name__)

APPEND = """
    SELECT bus.append($1::text[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[],
                      $6::uuid[], $7::int[], $8::text[], $9::bytea[])
"""

READ = """
    SELECT head.position AS head, m.* FROM (SELECT max(position) AS position FROM bus.log) AS head
    LEFT JOIN LATERAL (
      SELECT position, id, type, source, time, tenant_id, shard, traceparent, body FROM bus.log
      WHERE position > $1 AND topic = $2 AND type = ANY($3) ORDER BY position LIMIT $4
    ) AS m ON true
    ORDER BY m.position
"""
"""The head and the rows of one snapshot: fewer rows than asked for means all up to the head is read."""

MEASURE = """
    SELECT (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint
            FROM pg_inherits WHERE inhparent = 'bus.log'::regclass) AS log_bytes,
           pg_total_relation_size('bus.retries') AS retries_bytes,
           pg_total_relation_size('bus.dead_letters') AS dead_letters_bytes
"""

MAX_BYTES = 4 * 1024**3
PARTITION_BYTES = 64 * 1024**2
"""At which a partition of the log ends, if it has not ended by its number of messages before."""
NEARLY_FULL = 0.8
"""The part of the bound from which on the log says who is behind."""

READ_AT_ONCE = 256
TELEMETRY_AT_ONCE = 64
"""Batches are large, and each subscriber holds as many."""
APPEND_AT_ONCE = 2_000
RETRY_AT_ONCE = 100
TICK_S = 1.0
TRIM_S = 10.0
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 30.0
LONGEST_PAUSE_S = 5.0
STOP_S = 10.0
PUBLISH_S = 10.0
"""What is not committed by then may or may not be later: the publisher is told that it is not known."""
CLOSE_S = 5.0
CHECK_S = 3.0

_PREFIX = "bus."
"""Of the tasks' names."""

_Publishing: TypeAlias = "tuple[Sequence[Message], asyncio.Future[None]]"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the bus has on disk. The bytes are the tables', with what is free in them."""

    log_bytes: int = 0
    retries_bytes: int = 0
    dead_letters_bytes: int = 0
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """How many there are of each subscription, of those too that are no more."""

    @property
    def total_bytes(self) -> int:
        return self.log_bytes + self.retries_bytes + self.dead_letters_bytes


@dataclass(slots=True)
class _Subscriber:
    subscription: Subscription
    handle: Handle
    position: int = 0
    saved: int = 0
    retry_due: bool = True
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Counts = field(default_factory=Counts)

    @property
    def name(self) -> str:
        return self.subscription.name

    @property
    def durable(self) -> bool:
        return self.subscription.mode is Mode.SHARED


class LocalBus(Bus):
    """The log, read and written as role `bus_rw`.

    `forget_others` at `start` gives up the offsets of subscriptions that no longer exist in the
    code; only the process that runs all services may ask for it. `max_bytes` is what the log, the
    messages to be tried again and the dead letters may take on disk together (about: it is measured
    every 10 s) before `publish` raises Unavailable.
    """

    def __init__(
        self,
        database_url: str,
        clock: Clock,
        *,
        forget_others: bool = False,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._url = database_url
        self._clock = clock
        self._forget_others = forget_others
        self.max_bytes = max_bytes
        self._pool: asyncpg.Pool | None = None
        self._subscribers: list[_Subscriber] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: list[_Publishing] = []
        self._appendable = asyncio.Event()
        self._stopping = asyncio.Event()
        self._head = 0
        self.kept = Kept()
        """What was on disk when it was measured last."""

    @property
    def is_full(self) -> bool:
        """Whether `publish` refuses, because too much is kept."""
        return self.kept.total_bytes >= self.max_bytes

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append the messages and return once they are committed.

        Raises Unavailable after 10 s, and at once if the log is full.
        """
        if not messages:
            return
        if self._pool is None or self._stopping.is_set():
            raise Unavailable("the event log is not open", retry_after_s=1)
        if self.is_full:
            raise Unavailable("the event log is full", retry_after_s=TRIM_S)
        appended = asyncio.get_running_loop().create_future()
        publishing = (messages, appended)
        self._pending.append(publishing)
        self._appendable.set()
        try:
            async with asyncio.timeout(PUBLISH_S):
                await appended
        except TimeoutError:
            raise Unavailable("the event log did not confirm in time", retry_after_s=5) from None
        finally:
            if not appended.done() or appended.cancelled():
                self._pending = [p for p in self._pending if p is not publishing]

    def subscribe(self, subscription: Subscription, handle: Handle) -> None:
        """Listen from `start` on."""
        if any(s.name == subscription.name and s.durable for s in self._subscribers):
            raise ValueError(f"subscription {subscription.name} is declared twice")
        self._subscribers.append(_Subscriber(subscription, handle))

    def outbox(self, schema: str) -> Outbox:
        """Return the outbox, which is the log itself."""
        return _LogOutbox(self)

    async def start(self) -> None:
        """Open the log and begin to deliver."""
        self._stopping.clear()
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=1,
            max_size=8,
            timeout=5,
            command_timeout=60,
            reset=_keep,
            server_settings={
                "application_name": "iiot-bus",
                "jit": "off",
                "idle_in_transaction_session_timeout": "60s",
            },
        )
        try:
            await self._register()
        except BaseException:
            self._pool.terminate()
            self._pool = None
            raise
        self._tasks = [
            self._begin("append", self._append_pending()),
            self._begin("trim", self._keep_trimmed()),
            *[self._begin(s.name, self._deliver(s)) for s in self._subscribers],
        ]

    async def stop(self) -> None:
        """Let what is being handled finish (10 s at most), save the offsets, close."""
        if self._pool is None:
            return
        self._stopping.set()
        self.wake()
        self._appendable.set()
        _, late = await asyncio.wait(self._tasks, timeout=STOP_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CLOSE_S)
        for _, appended in self._pending:
            if not appended.done():
                appended.set_exception(Unavailable("the event log was closed", retry_after_s=1))
        self._pending = []
        try:
            async with asyncio.timeout(CLOSE_S):
                with contextlib.suppress(*LOST):
                    for subscriber in self._subscribers:
                        await self._save(subscriber)
                await self._pool.close()
        except TimeoutError:
            log.warning("the event log did not close in time")
            self._pool.terminate()
        self._pool = None

    async def check(self) -> None:
        """Return if the log can be read and written now, and every subscriber is at work."""
        if self._pool is None:
            raise Unavailable("the event log is not open")
        if ended := [_name(task) for task in self._tasks if task.done()]:
            raise Unavailable(f"no longer at work on the event log: {', '.join(ended)}")
        if self.is_full:
            raise Unavailable("the event log is full")
        try:
            async with asyncio.timeout(CHECK_S):
                await self._pool.fetchval("SELECT 1")
        except LOST as error:
            raise Unavailable("the event log cannot be reached") from error

    def wake(self) -> None:
        """Tell every subscriber to look at the log now."""
        for subscriber in self._subscribers:
            subscriber.wake.set()

    def counts(self) -> dict[str, Counts]:
        """Return what each subscription went through since the start."""
        return {s.name: s.counts for s in self._subscribers}

    def behind(self) -> dict[str, int]:
        """Return how many messages, of whatever type, each subscription has not passed yet."""
        return {s.name: max(0, self._head - s.position) for s in self._subscribers}

    async def trim(self) -> None:
        """Drop what everyone has read, and measure what is kept. Done by itself every 10 s.

        Whoever reads the log for long, as a backup does, is not waited for: it is dropped later.
        """
        assert self._pool is not None
        for subscriber in self._subscribers:
            await self._save(subscriber)
            subscriber.retry_due = True  # an operator may have put dead letters back
        # What this process's own replicas have not read yet is kept for them too.
        unread = min((s.position for s in self._subscribers if not s.durable), default=None)
        await self._pool.execute(
            "SELECT bus.end_partition($1)", min(PARTITION_BYTES, self.max_bytes // 16)
        )
        try:
            while await self._pool.fetchval("SELECT bus.drop_read($1)", unread):
                pass
        except asyncpg.LockNotAvailableError:
            log.warning("the event log is being read by others, and trimmed later")
        except asyncpg.UndefinedTableError:
            # Another process dropped it while this one was looking whether it may.
            log.info("the event log is being trimmed by others")
        dead = await self._pool.fetch(
            "SELECT subscriber, count(*) FROM bus.dead_letters GROUP BY 1"
        )
        # Behind the count: what is counted is measured too.
        sizes = await self._pool.fetchrow(MEASURE)
        assert sizes is not None
        self.kept = Kept(**sizes, dead_letters={row["subscriber"]: row["count"] for row in dead})
        if self.kept.total_bytes >= NEARLY_FULL * self.max_bytes:
            log.error(
                "the event log is full" if self.is_full else "the event log is nearly full",
                max_bytes=self.max_bytes,
                log_bytes=self.kept.log_bytes,
                dead_letters_bytes=self.kept.dead_letters_bytes,
                behind={name: count for name, count in self.behind().items() if count},
            )

    def _begin(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{_PREFIX}{name}")
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Say so if a task ends that must not; `check` then fails until the next start."""
        error = None if task.cancelled() else task.exception()
        if error is not None or not self._stopping.is_set():
            log.error("no longer at work on the event log", task=_name(task), error=repr(error))

    async def _register(self) -> None:
        assert self._pool is not None
        # The log may be empty, because all of it was read and dropped.
        head = await self._pool.fetchval(
            "SELECT greatest(0, (SELECT max(position) FROM bus.log),"
            " (SELECT max(position) FROM bus.subscribers))"
        )
        self._head = head
        names = [s.name for s in self._subscribers if s.durable]
        if self._forget_others:
            await self._pool.execute("DELETE FROM bus.subscribers WHERE name <> ALL($1)", names)
        # In one order: another process that starts now waits, and neither for the other.
        rows = await self._pool.fetch(
            "INSERT INTO bus.subscribers SELECT name, $2 FROM unnest($1::text[]) AS name ORDER BY 1"
            " ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING name, position",
            names,
            head,
        )
        positions = {row["name"]: row["position"] for row in rows}
        for subscriber in self._subscribers:
            subscriber.position = positions[subscriber.name] if subscriber.durable else head
            subscriber.saved = subscriber.position

    # --- writing

    async def _append_pending(self) -> None:
        """Commit whatever waits as one transaction, again and again: batches grow under load."""
        assert self._pool is not None
        while True:
            if not self._pending:
                if self._stopping.is_set():
                    return
                self._appendable.clear()
                await self._appendable.wait()
                continue
            batch: list[_Publishing] = []
            count = 0
            while self._pending and count < APPEND_AT_ONCE:
                batch.append(self._pending.pop(0))
                count += len(batch[-1][0])
            await self._append(batch)

    async def _append(self, batch: Sequence[_Publishing]) -> None:
        """Commit, and tell those who wait what became of it."""
        assert self._pool is not None
        error: Exception | None = None
        try:
            head = await self._pool.fetchval(
                APPEND, *_columns([m for messages, _ in batch for m in messages])
            )
            self._head = max(self._head, head)
        except (Exception, asyncio.CancelledError) as caught:
            # Whatever it is belongs to those who wait.
            if is_own_cancellation(caught):
                _tell(batch, Unavailable("the event log was closed", retry_after_s=1))
                raise
            if isinstance(caught, asyncio.CancelledError) or is_transient(caught):
                error = Unavailable("the event log cannot be written now", retry_after_s=1)
                error.__cause__ = caught
            elif len(batch) == 1:
                error = caught
            else:
                # The fault of one of them: each is tried apart, in the same order.
                for publishing in batch:
                    await self._append([publishing])
                return
        _tell(batch, error)
        if error is None:
            self.wake()

    async def _keep_trimmed(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.trim()
            except LOST as error:
                log.warning("the event log could not be trimmed", error=repr(error))
            except (Exception, asyncio.CancelledError) as error:
                # Whatever it is: the next time it may be gone.
                if is_own_cancellation(error):
                    raise
                log.exception("trimming the event log failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), TRIM_S)

    # --- reading

    async def _deliver(self, subscriber: _Subscriber) -> None:
        failures = 0
        while not self._stopping.is_set():
            subscriber.wake.clear()
            try:
                wait_s = await self._retry_due(subscriber)
                read_all = await self._read(subscriber)
                failures = 0
            except (Exception, asyncio.CancelledError) as error:
                # Only the log itself can fail here: what handlers raise was judged already.
                # Whatever it is, the subscriber must go on.
                if is_own_cancellation(error):
                    raise
                failures += 1
                if not is_transient(error):
                    log.exception("reading the event log failed", subscription=subscriber.name)
                await self._pause(subscriber, failures)
                continue
            if read_all:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(subscriber.wake.wait(), min(wait_s, TICK_S))

    async def _read(self, subscriber: _Subscriber) -> bool:
        """Handle what the log holds for a subscriber; return whether it has read all."""
        assert self._pool is not None
        subscription = subscriber.subscription
        topic = "telemetry" if subscription.sharded else "events"
        at_once = TELEMETRY_AT_ONCE if subscription.sharded else READ_AT_ONCE
        rows = await self._pool.fetch(
            READ, subscriber.position, topic, list(subscription.types), at_once
        )
        messages = [(row["position"], _message(row)) for row in rows if row["id"] is not None]
        for start in range(0, len(messages), subscription.batch):
            chunk = messages[start : start + subscription.batch]
            if not await self._handle(subscriber, [m for _, m in chunk]):
                return True  # stopping: not handled, so not passed
            subscriber.position = chunk[-1][0]
        head = rows[0]["head"]
        if head is not None:
            self._head = max(self._head, head)
            if len(messages) < at_once:
                subscriber.position = max(subscriber.position, head)
        if subscriber.durable and messages:
            await self._save(subscriber)
        return len(messages) < at_once

    async def _handle(self, subscriber: _Subscriber, messages: Sequence[Message]) -> bool:
        """Bring a batch to its end; False if the bus is stopping before that."""
        pauses = failures = 0
        while True:
            error = await _try(subscriber.handle, messages)
            if error is not None:
                outcome = outcome_of(error)
                if outcome is Outcome.PAUSE:
                    if self._stopping.is_set():
                        return False
                    pauses += 1
                    log.warning("paused", subscription=subscriber.name, error=repr(error))
                    await self._pause(subscriber, pauses)
                    continue
                if len(messages) > 1:
                    # Whatever it is, it is one message's; the others were rolled back with it.
                    for message in messages:
                        if not await self._handle(subscriber, [message]):
                            return False
                    return True
                if outcome is Outcome.RETRY and not subscriber.durable:
                    # What each replica must hear is not set aside: it is tried again in its place.
                    failures += 1
                    if failures < subscriber.subscription.attempts:
                        if self._stopping.is_set():
                            return False
                        subscriber.counts.retried += 1
                        await self._pause(subscriber, failures)
                        continue
                if outcome is not Outcome.DONE:
                    await self._set_aside(subscriber, messages[0], error, outcome, attempts=1)
                    return True
            subscriber.counts.handled += len(messages)
            return True

    async def _retry_due(self, subscriber: _Subscriber) -> float:
        """Try again what is due; return the seconds until the next."""
        assert self._pool is not None
        if not subscriber.durable or not subscriber.retry_due:
            return TICK_S
        now = self._clock.now()
        rows = await self._pool.fetch(
            "SELECT attempts, message FROM bus.retries"
            " WHERE subscriber = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3",
            subscriber.name,
            now,
            RETRY_AT_ONCE,
        )
        for row in rows:
            message = msgspec.msgpack.decode(row["message"], type=Message)
            error = await _try(subscriber.handle, [message])
            if error is not None and (outcome := outcome_of(error)) is not Outcome.DONE:
                await self._set_aside(
                    subscriber, message, error, outcome, attempts=row["attempts"] + 1
                )
                continue
            await self._pool.execute(
                "DELETE FROM bus.retries WHERE subscriber = $1 AND id = $2",
                subscriber.name,
                message.id,
            )
            subscriber.counts.handled += 1
        due_at = await self._pool.fetchval(
            "SELECT min(due_at) FROM bus.retries WHERE subscriber = $1", subscriber.name
        )
        subscriber.retry_due = due_at is not None
        if due_at is None:
            return TICK_S
        return float(max(0.01, (due_at - self._clock.now()).total_seconds()))

    async def _set_aside(
        self,
        subscriber: _Subscriber,
        message: Message,
        error: BaseException,
        outcome: Outcome,
        *,
        attempts: int,
    ) -> None:
        """Keep a message that failed: to be tried again later, or as a dead letter."""
        assert self._pool is not None
        body = msgspec.msgpack.encode(message)
        reason = f"{type(error).__name__}: {error}"
        if outcome is Outcome.PAUSE:
            attempts -= 1  # its own turn did not come: not an attempt
        dead = outcome is Outcome.DEAD_LETTER or attempts >= subscriber.subscription.attempts
        if not subscriber.durable:
            log.error("given up", subscription=subscriber.name, type=message.type, error=reason)
            subscriber.counts.dead += 1
            return
        async with self._pool.acquire() as connection, connection.transaction():
            if dead:
                await connection.execute(
                    "INSERT INTO bus.dead_letters (subscriber, id, type, tenant_id, reason, message)"
                    " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (subscriber, id) DO NOTHING",
                    subscriber.name,
                    message.id,
                    message.type,
                    message.tenant_id,
                    reason,
                    body,
                )
                await connection.execute(
                    "DELETE FROM bus.retries WHERE subscriber = $1 AND id = $2",
                    subscriber.name,
                    message.id,
                )
            else:
                delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (max(attempts, 1) - 1))
                await connection.execute(
                    "INSERT INTO bus.retries VALUES ($1, $2, $3, $4, $5)"
                    " ON CONFLICT (subscriber, id)"
                    " DO UPDATE SET attempts = excluded.attempts, due_at = excluded.due_at",
                    subscriber.name,
                    message.id,
                    attempts,
                    self._clock.now() + timedelta(seconds=delay_s),
                    body,
                )
        subscriber.retry_due = True
        if dead:
            subscriber.counts.dead += 1
            log.error("dead letter", subscription=subscriber.name, type=message.type, error=reason)
        else:
            subscriber.counts.retried += 1
            log.warning("will retry", subscription=subscriber.name, type=message.type, error=reason)

    async def _pause(self, subscriber: _Subscriber, times: int) -> None:
        subscriber.counts.pauses += 1
        delay_s = min(LONGEST_PAUSE_S, 0.1 * 2 ** min(times - 1, 10)) * random.uniform(0.8, 1.2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _save(self, subscriber: _Subscriber) -> None:
        """Note how far a subscriber has read. Lost in a crash, it reads a little twice."""
        assert self._pool is not None
        if not subscriber.durable or subscriber.saved == subscriber.position:
            return
        position = subscriber.position
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")
            await connection.execute(
                "UPDATE bus.subscribers SET position = $2 WHERE name = $1 AND position < $2",
                subscriber.name,
                position,
            )
        subscriber.saved = position


async def _keep(connection: asyncpg.Connection) -> None:
    """Leave the connection as it is: no statement here sets what outlives its transaction."""


async def _try(handle: Handle, messages: Sequence[Message]) -> BaseException | None:
    try:
        await handle(messages)
    except asyncio.CancelledError as error:
        if is_own_cancellation(error):
            raise
        return error  # something the handler awaited was cancelled, not we
    except Exception as error:  # noqa: BLE001 - outcome_of judges it
        return error
    return None


def _name(task: asyncio.Task[None]) -> str:
    return task.get_name().removeprefix(_PREFIX)


def _tell(batch: Sequence[_Publishing], error: Exception | None) -> None:
    for _, appended in batch:
        if appended.done():
            continue  # gave up waiting
        if error is None:
            appended.set_result(None)
        else:
            appended.set_exception(error)


class _LogOutbox(Outbox):
    """Appends to the log within the transaction that says the events."""

    def __init__(self, bus: LocalBus) -> None:
        self._bus = bus

    async def write(self, connection: AsyncConnection, messages: Sequence[Message]) -> None:
        await connection.exec_driver_sql(APPEND, tuple(_columns(messages)))

    def committed(self) -> None:
        self._bus.wake()


def _columns(messages: Sequence[Message]) -> list[list[object]]:
    return [
        ["events" if m.shard is None else "telemetry" for m in messages],
        [m.id for m in messages],
        [m.type for m in messages],
        [m.source for m in messages],
        [m.time for m in messages],
        [m.tenant_id for m in messages],
        [m.shard for m in messages],
        [m.traceparent for m in messages],
        [m.body for m in messages],
    ]


def _message(row: asyncpg.Record) -> Message:
    return Message(
        id=row["id"],
        type=row["type"],
        source=row["source"],
        time=row["time"],
        tenant_id=row["tenant_id"],
        shard=row["shard"],
        traceparent=row["traceparent"],
        body=row["body"],
    )
