"""What tenants use of the historian: points by day, added up with the ledger, and room."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.quotas.terms import Resource

AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Untold:
    """An amount of a day that was not told yet."""

    tenant_id: UUID
    day: date
    resource: Resource
    amount: int


class Usage:
    """What one tenant uses."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def stored_bytes(self) -> int:
        """Return how much the tenant stored when it was counted last."""
        found = await self._session.scalar(
            text(
                "SELECT amount FROM ingest.usage WHERE tenant_id = :tenant"
                " AND resource = 'storage_bytes' ORDER BY day DESC LIMIT 1"
            ),
            {"tenant": self._tenant_id},
        )
        return int(found or 0)

    async def note_told(self, told: Sequence[Untold]) -> None:
        """Note what was told, of all the tenants bound."""
        for one in told:
            await self._session.execute(
                text(
                    "UPDATE ingest.usage SET told = :amount WHERE tenant_id = :tenant"
                    " AND resource = :resource AND day = :day"
                ),
                {
                    "tenant": one.tenant_id,
                    "resource": one.resource.value,
                    "day": one.day,
                    "amount": one.amount,
                },
            )


class UsageOfAll:
    """What all tenants use (role `ingest_engine`)."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def untold(self) -> list[Untold]:
        """Return some of what has changed since it was told."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT tenant_id, day, resource, amount FROM ingest.usage"
                    " WHERE told IS DISTINCT FROM amount LIMIT :most"
                ),
                {"most": AT_ONCE},
            )
            return [
                Untold(row.tenant_id, row.day, Resource(row.resource), row.amount) for row in rows
            ]

    async def count_storage(self) -> None:
        """Count how much every tenant stores now."""
        async with self._engine.connection() as connection:
            await connection.execute(
                text(
                    """
                    INSERT INTO ingest.usage (tenant_id, resource, day, amount)
                    SELECT s.tenant_id, 'storage_bytes',
                      (sec.iiot_now() AT TIME ZONE 'UTC')::date, s.bytes
                    FROM historian.storage() AS s
                    WHERE NOT EXISTS (SELECT FROM ingest.tenants AS x
                      WHERE x.tenant_id = s.tenant_id AND x.status = 'deleted')
                    ON CONFLICT (tenant_id, resource, day) DO UPDATE SET amount = excluded.amount
                    """
                )
            )
            await connection.execute(
                text(
                    "DELETE FROM ingest.usage WHERE told = amount"
                    " AND day < (sec.iiot_now() AT TIME ZONE 'UTC')::date - 3"
                )
            )
