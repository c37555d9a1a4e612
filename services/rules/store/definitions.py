"""What the workers must know across all tenants: the rules in force, and what a series is.

Works as role `rules_engine`, which may read definitions and nothing else of a tenant.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import any_, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.rules.domain.rule import Rule
from services.rules.domain.watch import SeriesKey
from services.rules.store.rules import to_rule
from services.rules.store.tables import RuleRow

AT_ONCE = 5_000
"""How many rules are read by one statement."""


class Definitions:
    """Reads definitions across tenants."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def versions(self) -> dict[UUID, int]:
        """Return the versions of all enabled rules of all tenants."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                select(RuleRow.id, RuleRow.version).where(RuleRow.enabled)
            )
            return {row.id: row.version for row in rows}

    async def enabled(self, rule_ids: Sequence[UUID]) -> list[Rule]:
        """Return those of the rules that exist and are enabled."""
        found: list[Rule] = []
        for start in range(0, len(rule_ids), AT_ONCE):
            # One parameter, an array: a parameter for each id ends at 32,767 of them.
            ids = literal(list(rule_ids[start : start + AT_ONCE]), ARRAY(PG_UUID))
            async with AsyncSession(self._engine.engine) as session:
                rows = await session.scalars(
                    select(RuleRow).where(RuleRow.id == any_(ids), RuleRow.enabled)
                )
                found.extend(to_rule(row) for row in rows)
        return found

    async def describe_series(self, numbers: Sequence[int]) -> list[tuple[int, SeriesKey]]:
        """Return what the series of these numbers are, as far as they exist."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT id, tenant_id, device_id, metric"
                    " FROM historian.describe_series(cast(:numbers AS int[]))"
                ),
                {"numbers": list(numbers)},
            )
            return [
                (number, SeriesKey(tenant_id, device_id, metric))
                for number, tenant_id, device_id, metric in rows
            ]
