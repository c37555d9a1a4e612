"""What is done with tenants."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from libs.common.db.erasure import erase_tenant
from libs.common.errors import Conflict, PreconditionFailed, invalid
from libs.common.events.tenancy import TenantCreated, TenantDeleted, TenantUpdated
from services.tenancy.domain.tenant import SLUG, Tenant, TenantStatus
from services.tenancy.store.store import TenancyStore


async def create(store: TenancyStore, *, slug: str, name: str, at: datetime) -> Tenant:
    """Open the tenant that the transaction is bound to.

    Raises Invalid for a slug that is none, Conflict if it is taken.
    """
    if not SLUG.match(slug):
        raise invalid("#/slug", "must be 1 to 63 of a-z, 0-9 and -, with a letter or digit outside")
    tenant = Tenant(
        id=store.tenant_id,
        slug=slug,
        name=name,
        status=TenantStatus.ACTIVE,
        created_at=at,
        updated_at=at,
        version=1,
    )
    await store.tenants.add(tenant)
    store.emit(TenantCreated(tenant_id=tenant.id, at=at, slug=slug, name=name))
    return tenant


async def update(
    store: TenancyStore,
    tenant_id: UUID,
    *,
    name: str | None,
    status: TenantStatus | None,
    version: int | None,
    from_tenant: UUID,
    at: datetime,
) -> Tenant:
    """Rename a tenant, suspend it (nobody enters any more) or reinstate it.

    `from_tenant` is the one the caller came in by. Raises NotFound; PreconditionFailed if `version`
    is given and is no longer the tenant's; Conflict if callers would shut themselves out.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    if version is not None and version != tenant.version:
        raise PreconditionFailed(f"the tenant is at version {tenant.version}, not {version}")
    if status is TenantStatus.SUSPENDED and tenant_id == from_tenant:
        raise Conflict("this would shut you out yourself: come in by another tenant")
    tenant = replace(
        tenant,
        name=tenant.name if name is None else name,
        status=tenant.status if status is None else status,
        updated_at=at,
        version=tenant.version + 1,
    )
    await store.tenants.update(tenant)
    store.emit(
        TenantUpdated(
            tenant_id=tenant.id, at=at, slug=tenant.slug, name=tenant.name, status=tenant.status
        )
    )
    return tenant


async def remove(store: TenancyStore, tenant_id: UUID, *, at: datetime) -> None:
    """Remove a tenant for good, with the users who belong to no other.

    Raises NotFound, and Conflict unless it was suspended before: removing cannot be undone.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    if tenant.status is not TenantStatus.SUSPENDED:
        raise Conflict("suspend the tenant first: removing it cannot be undone")
    members = await store.members.ids()
    await erase_tenant(store, "tenancy")
    await store.users.forget(members)
    await store.removal.note(tenant.slug, at)
    store.emit(TenantDeleted(tenant_id=tenant_id, at=at, slug=tenant.slug))


async def remove_again(store: TenancyStore, *, at: datetime) -> None:
    """Say once more that a tenant was removed, and forget that it was.

    While the others heard it the first time, a request or an event of the tenant may have been
    under way, and written what nobody would ever erase.
    """
    slug = await store.removal.take()
    if slug is None:
        return  # another replica was quicker
    await erase_tenant(store, "tenancy")
    store.emit(TenantDeleted(tenant_id=store.tenant_id, at=at, slug=slug))
