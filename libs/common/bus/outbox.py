"""The outbox as a table in the service's schema, and the relay that empties it onto the bus.

A crash between the broker's confirm and the deletion publishes a message twice, with the same
id; handlers survive that.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from enum import Enum
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    delete,
    func,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.base import Outbox
from libs.common.bus.rabbit_link import pause_s
from libs.common.db.engine import Database
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.tasks import end

log = structlog.get_logger(__name__)

AT_ONCE = 200
TICK_S = 1.0
"""The net: what was committed without a word to this process leaves within this time."""
TAKEN_S = 0.02
"""Another replica's relay is at work, and may have looked before our commit: look again soon."""

Publish = Callable[[Sequence[Message]], Awaitable[None]]


def outbox_table(schema: str) -> Table:
    """Return the table of a schema's outbox; `seq` is the order of writing."""
    return Table(
        "outbox",
        MetaData(schema=schema),
        Column("seq", BigInteger, primary_key=True),
        Column("id", Uuid),
        Column("tenant_id", Uuid),
        Column("shard", Integer),
        Column("type", Text),
        Column("source", Text),
        Column("time", DateTime(timezone=True)),
        Column("traceparent", Text),
        Column("body", LargeBinary),
    )


class TableOutbox(Outbox):
    """Writes into `<schema>.outbox` within the caller's transaction."""

    def __init__(self, schema: str) -> None:
        self._insert = (
            f"INSERT INTO {schema}.outbox"  # noqa: S608 - a schema's name, from the code
            " (id, tenant_id, shard, type, source, time, traceparent, body)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::text[],"
            " $6::timestamptz[], $7::text[], $8::bytea[])"
        )
        self.filled = asyncio.Event()
        """Set when a transaction with messages has committed."""

    async def write(self, connection: AsyncConnection, messages: Sequence[Message]) -> None:
        """Add the messages to the connection's open transaction."""
        # Plain SQL: a service may insert and not read, and SQLAlchemy would ask for the new keys.
        await connection.exec_driver_sql(
            self._insert,
            (
                [m.id for m in messages],
                [m.tenant_id for m in messages],
                [m.shard for m in messages],
                [m.type for m in messages],
                [m.source for m in messages],
                [m.time for m in messages],
                [m.traceparent for m in messages],
                [m.body for m in messages],
            ),
        )

    def committed(self) -> None:
        """Wake the relay."""
        self.filled.set()


class _Found(Enum):
    NOTHING = "nothing"
    SOME = "some"
    TAKEN = "taken"


class Relay:
    """Publishes what lies in one schema's outbox, in the order of writing, until `stop`.

    Of all replicas' relays one works at a time, by an advisory lock held for its transaction.
    `database` is that of `<service>_engine`, which sees all tenants' rows.
    """

    def __init__(
        self, schema: str, outbox: TableOutbox, database: Database, publish: Publish
    ) -> None:
        self._schema = schema
        self._table = outbox_table(schema)
        self._filled = outbox.filled
        self._database = database
        self._publish = publish
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for messages."""
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name=f"bus.relay.{self._schema}")

    async def stop(self, within_s: float) -> None:
        """Finish what is being published, within the time."""
        if self._task is None:
            return
        self._stopping = True
        self._filled.set()
        await asyncio.wait([self._task], timeout=within_s)
        await end(self._task)
        self._task = None

    async def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._filled.clear()
            try:
                found = await self._publish_next()
                failures = 0
            except Exception as error:  # whatever it is, what lies in the outbox must leave one day
                failures += 1
                if isinstance(
                    error, Unavailable | OSError | SQLAlchemyError | asyncpg.InterfaceError
                ):
                    log.warning("the outbox waits", schema=self._schema, error=repr(error))
                else:
                    log.exception("the outbox is stuck", schema=self._schema)
                await asyncio.sleep(pause_s(failures))
                continue
            if found is not _Found.SOME:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TAKEN_S if found is _Found.TAKEN else TICK_S):
                        await self._filled.wait()

    async def _publish_next(self) -> _Found:
        table = self._table
        async with self._database.connection() as connection:
            lock = func.pg_try_advisory_xact_lock(func.hashtext(f"outbox:{self._schema}"))
            if not (await connection.execute(select(lock))).scalar_one():
                return _Found.TAKEN
            rows = (
                await connection.execute(select(table).order_by(table.c.seq).limit(AT_ONCE))
            ).all()
            if not rows:
                return _Found.NOTHING
            await self._publish([_message(*row) for row in rows])
            seqs = [row.seq for row in rows]
            await connection.execute(delete(table).where(table.c.seq.in_(seqs)))
        return _Found.SOME


def _message(
    _seq: int,
    id_: UUID,
    tenant_id: UUID | None,
    shard: int | None,
    type_: str,
    source: str,
    time: datetime,
    traceparent: str | None,
    body: bytes,
) -> Message:
    return Message(
        id=id_,
        tenant_id=tenant_id,
        shard=shard,
        type=type_,
        source=source,
        time=time,
        traceparent=traceparent,
        body=body,
    )
