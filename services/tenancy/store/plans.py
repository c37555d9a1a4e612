"""The installation's plans."""

from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from libs.common.quotas.terms import WARN_PERCENT, Resource, Terms
from services.tenancy.domain.plan import Plan, Quotas
from services.tenancy.store.tables import PlanRow


class Plans:
    """Plans, which are of no tenant: the platform's admins alone change them."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def all(self) -> list[Plan]:
        """Return all plans by name."""
        return [
            _to_plan(row)
            for row in await self._session.scalars(select(PlanRow).order_by(PlanRow.name))
        ]

    async def get(self, name: str, *, lock: bool = False) -> Plan:
        """Return a plan; with `lock` it stays as it is until the transaction ends. Raises NotFound."""
        query = select(PlanRow).where(PlanRow.name == name)
        row = await self._session.scalar(query.with_for_update(read=True) if lock else query)
        if row is None:
            raise NotFound(f"no plan {name}")
        return _to_plan(row)

    async def add(self, plan: Plan) -> None:
        """Keep a new plan. Raises Conflict if there is one of that name."""
        row = PlanRow(
            name=plan.name,
            description=plan.description,
            quotas=as_document(plan.quotas),
            is_built_in=plan.is_built_in,
            created_at=plan.created_at,
            updated_at=plan.updated_at,
            version=plan.version,
        )
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            raise Conflict(f"there is a plan {plan.name!r} already") from error

    async def change(self, name: str, description: str, quotas: Quotas, at: datetime) -> Plan:
        """Let a plan allow something else. Raises NotFound."""
        row = await self._session.scalar(
            select(PlanRow).where(PlanRow.name == name).with_for_update()
        )
        if row is None:
            raise NotFound(f"no plan {name}")
        row.description, row.quotas = description, as_document(quotas)
        row.updated_at, row.version = at, row.version + 1
        await self._session.flush()
        return _to_plan(row)

    async def remove(self, name: str) -> None:
        """Remove a plan. Raises Conflict if a tenant has it."""
        try:
            async with self._session.begin_nested():
                await self._session.execute(delete(PlanRow).where(PlanRow.name == name))
        except IntegrityError as error:
            raise Conflict(f"there are tenants with the plan {name!r}") from error


def as_document(quotas: Quotas) -> dict[str, Any]:
    """Return quotas as they are kept."""
    return {
        resource.value: {"most": terms.most, "warn_percent": terms.warn_percent}
        for resource, terms in quotas.items()
    }


def as_quotas(document: dict[str, Any]) -> dict[Resource, Terms]:
    """Return what `as_document` kept."""
    return {
        resource: Terms(kept["most"], kept.get("warn_percent", WARN_PERCENT))
        for resource in Resource
        if (kept := document.get(resource.value)) is not None
    }


def _to_plan(row: PlanRow) -> Plan:
    return Plan(
        name=row.name,
        description=row.description,
        quotas=as_quotas(row.quotas),
        is_built_in=row.is_built_in,
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
