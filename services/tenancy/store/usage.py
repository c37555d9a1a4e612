"""What a tenant uses, by day, and where it stands."""

from collections.abc import Sequence
from datetime import date
from typing import Literal
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.quotas.terms import Level, Resource
from services.tenancy.domain.usage import Day, Standing
from services.tenancy.store.tables import UsageDayRow, UsageStandingRow


class Usage:
    """The usage of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def take_turn(self) -> None:
        """Let nobody else count for the tenant until the transaction ends."""
        await self._session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:turn, 0))"),
            {"turn": f"tenancy.usage {self._tenant_id}"},
        )

    async def count(
        self, day: date, resource: Resource, amount: int, how: Literal["added", "total", "standing"]
    ) -> int:
        """Count an amount; return that of the whole day."""
        added = insert(UsageDayRow).values(
            tenant_id=self._tenant_id, day=day, resource=resource.value, amount=amount
        )
        kept, new = UsageDayRow.amount, added.excluded.amount
        counted = await self._session.scalar(
            added.on_conflict_do_update(
                index_elements=["tenant_id", "day", "resource"],
                set_={"amount": kept + new if how == "added" else func.greatest(kept, new)},
            ).returning(UsageDayRow.amount)
        )
        return int(counted or 0)

    async def standing(self, resource: Resource) -> Standing | None:
        """Return where the tenant stands; None if nothing was ever counted."""
        row = await self._session.scalar(
            select(UsageStandingRow).where(
                UsageStandingRow.tenant_id == self._tenant_id,
                UsageStandingRow.resource == resource.value,
            )
        )
        return None if row is None else _to_standing(row)

    async def standings(self) -> list[Standing]:
        """Return where the tenant stands, of all that was ever counted."""
        rows = await self._session.scalars(
            select(UsageStandingRow).where(UsageStandingRow.tenant_id == self._tenant_id)
        )
        return [_to_standing(row) for row in rows]

    async def put(self, standing: Standing) -> None:
        """Keep where the tenant stands."""
        values = {
            "day": standing.day,
            "amount": standing.amount,
            "level": standing.level.value,
            "worst": standing.worst.value,
            "worst_on": standing.worst_on,
        }
        await self._session.execute(
            insert(UsageStandingRow)
            .values(tenant_id=self._tenant_id, resource=standing.resource.value, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "resource"], set_=values)
        )

    async def days(self, since: date, until: date) -> Sequence[Day]:
        """Return the days of a span, its last one included, on which something was counted."""
        return (await self.days_of([self._tenant_id], since, until)).get(self._tenant_id, [])

    async def days_of(
        self, tenants: Sequence[UUID], since: date, until: date
    ) -> dict[UUID, list[Day]]:
        """Return the same of several tenants, all of which the transaction is bound to."""
        rows = await self._session.scalars(
            select(UsageDayRow)
            .where(
                UsageDayRow.tenant_id.in_(tenants),
                UsageDayRow.day >= since,
                UsageDayRow.day <= until,
            )
            .order_by(UsageDayRow.tenant_id, UsageDayRow.day, UsageDayRow.resource)
        )
        days: dict[UUID, list[Day]] = {}
        for row in rows:
            of_tenant = days.setdefault(row.tenant_id, [])
            if not of_tenant or of_tenant[-1].day != row.day:
                of_tenant.append(Day(row.day, {}))
            of_tenant[-1].amounts[Resource(row.resource)] = row.amount
        return days


def _to_standing(row: UsageStandingRow) -> Standing:
    return Standing(
        resource=Resource(row.resource),
        day=row.day,
        amount=row.amount,
        level=Level(row.level),
        worst=Level(row.worst),
        worst_on=row.worst_on,
    )


async def at_daily_limits(engine: Database, today: date) -> list[UUID]:
    """Return the tenants that were near a daily quota, or at it, on an earlier day.

    `engine` crosses tenants.
    """
    async with engine.connection() as connection:
        rows = await connection.scalars(
            select(UsageStandingRow.tenant_id)
            .where(
                UsageStandingRow.level != Level.WITHIN.value,
                UsageStandingRow.day < today,
                UsageStandingRow.resource.in_([r.value for r in Resource if r.is_per_day]),
            )
            .distinct()
        )
        return list(rows)
