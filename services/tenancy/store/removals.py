"""Tenants that were removed, until that was said for the last time."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.tenancy.store.tables import RemovedTenantRow


class Removal:
    """The note that one tenant was removed."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def note(self, slug: str, at: datetime) -> None:
        """Note that the tenant was removed."""
        self._session.add(RemovedTenantRow(tenant_id=self._tenant_id, slug=slug, removed_at=at))
        await self._session.flush()

    async def take(self) -> str | None:
        """Remove the note; return the slug that the tenant had, None if there is no note."""
        slug: str | None = await self._session.scalar(
            delete(RemovedTenantRow)
            .where(RemovedTenantRow.tenant_id == self._tenant_id)
            .returning(RemovedTenantRow.slug)
        )
        return slug


async def removed_before(engine: Database, moment: datetime) -> list[UUID]:
    """Return the tenants that were removed before, of which there is a note. `engine` crosses tenants."""
    async with engine.connection() as connection:
        rows = await connection.scalars(
            select(RemovedTenantRow.tenant_id)
            .where(RemovedTenantRow.removed_at < moment)
            .order_by(RemovedTenantRow.removed_at)
        )
        return list(rows)
