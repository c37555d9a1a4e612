"""The historian, as retention may empty it.

Works as role `retention_engine`, which reads for how long each tenant wants its points kept, and
erases through the historian's functions alone. Each erasing is one transaction with its events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.errors import Unavailable
from libs.common.events.base import Event, to_message
from services.retention.domain.expiry import Keeping
from services.retention.domain.policy import LEAST_DAYS, DataType
from services.retention.store.policies import POLICIES_LOCK

_LOCK_NOT_AVAILABLE = "55P03"
_DELETING_LOCK = 7301004

_KEEPINGS = text(
    """
    SELECT t.id, p.id AS policy_id, CASE WHEN t.gone_at IS NOT NULL THEN :least_days
      ELSE coalesce(p.keep_days, :default_days) END AS keep_days
    FROM historian.tenant t
    LEFT JOIN retention.policies p
      ON p.tenant_id = t.id AND p.data_type = :telemetry AND t.gone_at IS NULL
    ORDER BY t.number
    """
)


@dataclass(frozen=True, slots=True)
class DaySize:
    """A day of points of all tenants; the rows are an estimate."""

    day: date
    rows: int
    bytes: int


class StoredPoints:
    """The points of all tenants."""

    def __init__(self, engine: Database, outbox: Outbox, default_days: int) -> None:
        self._engine = engine
        self._outbox = outbox
        self._default_days = default_days

    async def keepings(self) -> list[Keeping]:
        """Return for how long each tenant that ever had points wants them kept.

        Of one that is no more they are kept no longer than must be.
        """
        async with self._engine.connection() as connection:
            return await self._keepings(connection)

    async def days(self) -> list[DaySize]:
        """Return the days that have points, oldest first."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text("SELECT day, estimated_rows, bytes FROM historian.day_sizes()")
            )
            return [DaySize(day, count, size) for day, count, size in rows]

    async def count(self, tenant_id: UUID, before: datetime, most: int) -> int:
        """Return how many points of a tenant are from before; it counts up to `most`."""
        async with self._engine.connection() as connection:
            count: int = await connection.scalar(
                text("SELECT historian.count_expired(:tenant, :before, :most)"),
                {"tenant": tenant_id, "before": before, "most": most},
            )
            return count

    async def delete(
        self, tenant_id: UUID, before: datetime, most: int, say: Callable[[int], Event]
    ) -> int:
        """Delete up to `most` points of a tenant from before; return how many that were, and say it."""
        async with self._engine.connection() as connection:
            # Two at once would wait for each other's rows, in any order.
            await connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock, hashtext(:tenant))"),
                {"lock": _DELETING_LOCK, "tenant": str(tenant_id)},
            )
            rows: int = await connection.scalar(
                text("SELECT historian.delete_expired(:tenant, :before, :most)"),
                {"tenant": tenant_id, "before": before, "most": most},
            )
            if rows:
                await self._outbox.write(connection, [to_message(say(rows))])
        if rows:
            self._outbox.committed()
        return rows

    async def drop_day(
        self,
        day: date,
        is_over: Callable[[Sequence[Keeping]], bool],
        say: Callable[[Keeping], Event],
    ) -> bool:
        """Drop a day if it is over for all tenants, as they want it now; say it to each of them.

        False if it is not over, or no more. Raises Unavailable if somebody reads it for too long.
        """
        try:
            async with self._engine.connection() as connection:
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({POLICIES_LOCK:d})"))
                keepings = await self._keepings(connection)
                if not is_over(keepings):
                    return False
                dropped: bool = await connection.scalar(
                    text("SELECT historian.drop_day(:day)"), {"day": day}
                )
                if not dropped:
                    return False
                await self._outbox.write(connection, [to_message(say(k)) for k in keepings])
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise Unavailable(f"the points of {day} are being read") from error
            raise
        self._outbox.committed()
        return True

    async def forget_tenants(self, gone_before: datetime) -> int:
        """Forget the tenants that are gone since before, and have no points left; return how many."""
        async with self._engine.connection() as connection:
            forgotten: int = await connection.scalar(
                text("SELECT historian.forget_tenants(:moment)"), {"moment": gone_before}
            )
            return forgotten

    async def _keepings(self, connection: AsyncConnection) -> list[Keeping]:
        rows = await connection.execute(
            _KEEPINGS,
            {
                "default_days": self._default_days,
                "least_days": LEAST_DAYS,
                "telemetry": DataType.TELEMETRY.value,
            },
        )
        return [Keeping(row.id, row.keep_days, row.policy_id) for row in rows]
