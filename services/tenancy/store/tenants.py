"""The tenant that a transaction works for."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.tenancy.domain.tenant import Tenant, TenantStatus
from services.tenancy.store.tables import TenantRow


class Tenants:
    """One tenant: any other is as good as none."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, tenant: Tenant) -> None:
        """Open a tenant, which must be the one bound. Raises Conflict if the slug is taken."""
        row = TenantRow(
            tenant_id=tenant.id,
            slug=tenant.slug,
            name=tenant.name,
            status=tenant.status,
            created_at=tenant.created_at,
            updated_at=tenant.updated_at,
            version=tenant.version,
        )
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "tenants_slug_key" in str(error.orig):
                raise Conflict(f"there is a tenant {tenant.slug!r} already") from error
            raise

    async def get(self, tenant_id: UUID, *, lock: bool = False) -> Tenant:
        """Return the tenant, locked until the transaction ends if asked. Raises NotFound."""
        return to_tenant(await self._row(tenant_id, lock=lock))

    async def lock(self) -> None:
        """Let nobody else change this tenant or its members until the transaction ends."""
        await self._row(self._tenant_id, lock=True)

    async def update(self, tenant: Tenant) -> None:
        """Save what may change of the tenant."""
        row = await self._row(tenant.id)
        row.name = tenant.name
        row.status = tenant.status
        row.updated_at = tenant.updated_at
        row.version = tenant.version

    async def _row(self, tenant_id: UUID, *, lock: bool = False) -> TenantRow:
        query = select(TenantRow).where(
            TenantRow.tenant_id == self._tenant_id, TenantRow.tenant_id == tenant_id
        )
        if lock:
            query = query.with_for_update()
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no tenant {tenant_id}")
        return row


def to_tenant(row: TenantRow) -> Tenant:
    """Return the row as what it stands for."""
    return Tenant(
        id=row.tenant_id,
        slug=row.slug,
        name=row.name,
        status=TenantStatus(row.status),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
