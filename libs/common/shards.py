"""Which worker owns a shard, so that at no time two work on it from memory.

A worker keeps in memory how far it has got with a shard, which is true as long as it owns the shard
(`<schema>.shards`). It looks every TRUST_S whether it still does; whoever takes a shard over waits
a little longer than that before it begins, and reads anew what was written. Before a worker
writes, it locks the row, so that nobody else can take the shard over in the midst of it.
"""

import asyncio
from collections import defaultdict
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.outcome import is_transient
from libs.common.db.engine import Database

log = structlog.get_logger(__name__)

TRUST_S = 0.2
TAKEOVER_S = 0.25


class Shards:
    """The shards of one service. `owner` is this worker's name among its replicas.

    `engine` is the service's role that crosses tenants.
    """

    def __init__(self, schema: str, engine: Database, owner: UUID) -> None:
        self._table = f"{schema}.shards"
        self._engine = engine
        self._owner = owner
        self._trusted_until: dict[int, float] = {}
        self.working: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """A shard is worked on by one task at a time: after a lost connection, the batch that was
        being handled and its repetition would meet."""

    async def own(self, shard: int) -> bool:
        """Return when the shard is ours. False: it was not, and what is in memory is not true."""
        loop = asyncio.get_running_loop()
        was_ours = True
        while self._trusted_until.get(shard, 0.0) < loop.time():
            # From before the question: the answer may be old when it arrives.
            asked = loop.time()
            if await self._owner_of(shard) == self._owner:
                self._trusted_until[shard] = asked + TRUST_S
                break
            was_ours = False
            previous = await self._claim(shard)
            log.info("shard taken", shard=shard, previous=str(previous))
            if previous is not None:
                await asyncio.sleep(TAKEOVER_S)
        return was_ours

    async def holds(self, connection: AsyncConnection, shard: int) -> bool:
        """Whether the shard is ours; if so, it stays so until the connection's transaction ends."""
        owner = await connection.scalar(
            text(f"SELECT owner FROM {self._table} WHERE shard = :shard FOR SHARE"),  # noqa: S608 - a schema's name, from the code
            {"shard": shard},
        )
        if owner != self._owner:
            self._trusted_until.pop(shard, None)
        return bool(owner == self._owner)

    async def release(self) -> None:
        """Give up every shard that is ours, so that the next worker need not wait."""
        try:
            async with self._engine.connection() as connection:
                await connection.execute(
                    text(f"UPDATE {self._table} SET owner = NULL WHERE owner = :owner"),  # noqa: S608 - as above
                    {"owner": self._owner},
                )
        except Exception as error:  # looked at: the next worker waits TAKEOVER_S, that is all
            if not is_transient(error):
                raise
            log.warning("shards not given up", error=repr(error))

    async def _owner_of(self, shard: int) -> UUID | None:
        async with self._engine.connection() as connection:
            owner: UUID | None = await connection.scalar(
                text(f"SELECT owner FROM {self._table} WHERE shard = :shard"),  # noqa: S608 - as above
                {"shard": shard},
            )
            return owner

    async def _claim(self, shard: int) -> UUID | None:
        """Make the shard ours; return whose it was. Waits for what that one is writing."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text(f"INSERT INTO {self._table} (shard) VALUES (:shard) ON CONFLICT DO NOTHING"),  # noqa: S608 - as above
                {"shard": shard},
            )
            previous: UUID | None = await connection.scalar(
                text(f"SELECT owner FROM {self._table} WHERE shard = :shard FOR UPDATE"),  # noqa: S608 - as above
                {"shard": shard},
            )
            await connection.execute(
                text(f"UPDATE {self._table} SET owner = :owner WHERE shard = :shard"),  # noqa: S608 - as above
                {"shard": shard, "owner": self._owner},
            )
            return previous
