"""Whether a tenant's devices may come in."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from services.ingest.domain.tenant import TenantStatus
from services.ingest.store.tables import TenantRow


class Tenant:
    """The status of one tenant, as tenancy said it last."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def is_closed(self) -> bool:
        """Whether the tenant's devices are shut out."""
        status = await self._session.scalar(
            select(TenantRow.status).where(TenantRow.tenant_id == self._tenant_id)
        )
        return status is not None and TenantStatus(status).is_closed

    async def note(self, status: TenantStatus, at: datetime) -> bool:
        """Note what was said at a moment; False if what is noted is newer, or the tenant deleted."""
        values = {"status": status.value, "said_at": at}
        noted = await self._session.scalar(
            insert(TenantRow)
            .values(tenant_id=self._tenant_id, **values)
            .on_conflict_do_update(
                index_elements=["tenant_id"],
                set_=values,
                # Events may overtake each other; after "deleted" nothing follows but itself.
                where=(TenantRow.said_at <= at)
                & ((TenantRow.status != TenantStatus.DELETED) | (status is TenantStatus.DELETED)),
            )
            .returning(TenantRow.tenant_id)
        )
        return noted is not None


async def forget_deleted(engine: Database, kept: timedelta) -> None:
    """Forget the tenants that were deleted longer ago than `kept`. `engine` crosses tenants."""
    async with engine.connection() as connection:
        await connection.execute(
            text(
                "DELETE FROM ingest.tenants WHERE status = 'deleted'"
                " AND said_at < sec.iiot_now() - cast(:kept AS interval)"
            ),
            {"kept": kept},
        )
