"""The tenant that a transaction works for."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.errors import Conflict, NotFound
from services.tenancy.domain.tenant import Tenant, TenantStatus
from services.tenancy.store.plans import as_document, as_quotas
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
            plan=tenant.plan,
            plan_version=tenant.plan_version,
            own_quotas=as_document(tenant.own_quotas),
            status_reason=tenant.status_reason,
            erased_from=tenant.erased_from,
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
        row.plan = tenant.plan
        row.plan_version = tenant.plan_version
        row.own_quotas = as_document(tenant.own_quotas)
        row.status_reason = tenant.status_reason
        row.erased_from = tenant.erased_from
        await self._session.flush()

    async def exists(self) -> bool:
        """Whether there is such a tenant (still)."""
        found = await self._session.scalar(
            select(TenantRow.tenant_id).where(TenantRow.tenant_id == self._tenant_id)
        )
        return found is not None

    async def _row(self, tenant_id: UUID, *, lock: bool = False) -> TenantRow:
        query = select(TenantRow).where(
            TenantRow.tenant_id == self._tenant_id, TenantRow.tenant_id == tenant_id
        )
        if lock:
            # Its key never changes: whoever adds a row that belongs to it (usage, counted at the same
            # time) does not wait for us, who may be waiting for them.
            query = query.with_for_update(key_share=True)
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
        plan=row.plan,
        plan_version=row.plan_version,
        own_quotas=as_quotas(row.own_quotas),
        status_reason=row.status_reason,
        erased_from=row.erased_from,
    )


async def with_changed_plans(engine: Database) -> list[UUID]:
    """Return the tenants that were not told yet what their plan allows now. `engine` crosses tenants."""
    async with engine.connection() as connection:
        rows = await connection.scalars(
            text(
                "SELECT t.tenant_id FROM tenancy.tenants AS t JOIN tenancy.plans AS p"
                " ON p.name = t.plan WHERE t.plan_version <> p.version ORDER BY t.tenant_id"
            )
        )
        return list(rows)


async def to_be_erased(engine: Database, now: datetime) -> list[UUID]:
    """Return the tenants whose grace is over. `engine` crosses tenants."""
    async with engine.connection() as connection:
        rows = await connection.scalars(
            text("SELECT tenant_id FROM tenancy.tenants WHERE erased_from <= :now"), {"now": now}
        )
        return list(rows)
