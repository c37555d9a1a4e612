"""What is done with tenants."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.db.erasure import erase_tenant
from libs.common.errors import Conflict, NotFound, PreconditionFailed, invalid
from libs.common.events.tenancy import TenantCreated, TenantDeleted, TenantUpdated
from services.tenancy.domain.plan import UNLIMITED_PLAN, Quotas
from services.tenancy.domain.tenant import SLUG, Tenant, TenantStatus
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases.plans import say_quotas


async def create(
    store: TenancyStore,
    *,
    slug: str,
    name: str,
    plan: str = UNLIMITED_PLAN,
    own_quotas: Quotas | None = None,
    at: datetime,
) -> Tenant:
    """Open the tenant that the transaction is bound to.

    Raises Invalid for a slug that is none, Conflict if it is taken, NotFound if there is no such plan.
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
        plan=plan,
        own_quotas=own_quotas or {},
    )
    await store.plans.get(plan, lock=True)
    await store.tenants.add(tenant)
    store.emit(TenantCreated(tenant_id=tenant.id, at=at, slug=slug, name=name))
    return await say_quotas(store, tenant, at=at)


async def update(
    store: TenancyStore,
    tenant_id: UUID,
    *,
    name: str | None = None,
    plan: str | None = None,
    status: TenantStatus | None = None,
    version: int | None = None,
    from_tenant: UUID,
    at: datetime,
) -> Tenant:
    """Rename a tenant, give it another plan, suspend it or let it in again.

    `from_tenant` is the one the caller came in by. Raises NotFound, of the plan too;
    PreconditionFailed if `version` is given and is no longer the tenant's; Conflict if callers would
    shut themselves out, or it is closing.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    if version is not None and version != tenant.version:
        raise PreconditionFailed(f"the tenant is at version {tenant.version}, not {version}")
    if plan is not None:
        await store.plans.get(plan, lock=True)
    if name is not None or plan is not None:
        changed = replace(
            tenant,
            name=tenant.name if name is None else name,
            plan=tenant.plan if plan is None else plan,
            updated_at=at,
            version=tenant.version + 1,
        )
        await _save(store, changed, at=at)
        if changed.plan != tenant.plan:
            changed = await say_quotas(store, changed, at=at)
        tenant = changed
    if status is TenantStatus.SUSPENDED:
        return await suspend(store, tenant_id, reason="", from_tenant=from_tenant, at=at)
    if status is TenantStatus.ACTIVE:
        return await resume(store, tenant_id, at=at)
    return tenant


async def suspend(
    store: TenancyStore, tenant_id: UUID, *, reason: str, from_tenant: UUID, at: datetime
) -> Tenant:
    """Let nobody and no device of a tenant in any more, until it is resumed.

    Raises NotFound; Conflict if callers would shut themselves out, or it is closing.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    if tenant.status is TenantStatus.CLOSING:
        raise Conflict("the tenant is closing: nobody enters it, and soon it is no more")
    return await _shut(
        store, tenant, TenantStatus.SUSPENDED, reason, None, from_tenant=from_tenant, at=at
    )


async def resume(store: TenancyStore, tenant_id: UUID, *, at: datetime) -> Tenant:
    """Let a tenant in again that was suspended, or is closing and not yet erased. Raises NotFound."""
    tenant = await store.tenants.get(tenant_id, lock=True)
    return await _save(
        store,
        replace(
            tenant,
            status=TenantStatus.ACTIVE,
            status_reason="",
            erased_from=None,
            updated_at=at,
            version=tenant.version + 1,
        ),
        at=at,
    )


async def close(
    store: TenancyStore,
    tenant_id: UUID,
    *,
    reason: str,
    grace: timedelta,
    from_tenant: UUID,
    at: datetime,
) -> None:
    """Shut a tenant, and erase it when the grace is over; until then it can be resumed.

    Without any grace it is erased at once, which wants it shut before. Raises NotFound; Conflict if
    that is not so, or if callers would shut themselves out.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    if grace > timedelta():
        await _shut(
            store,
            tenant,
            TenantStatus.CLOSING,
            reason,
            at + grace,
            from_tenant=from_tenant,
            at=at,
        )
        return
    if tenant.status is TenantStatus.ACTIVE:
        raise Conflict("suspend the tenant first: without a grace this cannot be undone")
    await _remove(store, tenant, at=at)


async def erase_closed(store: TenancyStore, *, at: datetime) -> None:
    """Erase the tenant if its grace is over. One that was resumed meanwhile stays."""
    try:
        tenant = await store.tenants.get(store.tenant_id, lock=True)
    except NotFound:
        return  # another replica was quicker
    if tenant.erased_from is not None and tenant.erased_from <= at:
        await _remove(store, tenant, at=at)


async def _shut(
    store: TenancyStore,
    tenant: Tenant,
    status: TenantStatus,
    reason: str,
    erased_from: datetime | None,
    *,
    from_tenant: UUID,
    at: datetime,
) -> Tenant:
    if tenant.id == from_tenant:
        raise Conflict("this would shut you out yourself: come in by another tenant")
    shut = replace(
        tenant,
        status=status,
        status_reason=reason,
        erased_from=erased_from,
        updated_at=at,
        version=tenant.version + 1,
    )
    return await _save(store, shut, at=at)


async def _save(store: TenancyStore, tenant: Tenant, *, at: datetime) -> Tenant:
    await store.tenants.update(tenant)
    store.emit(
        TenantUpdated(
            tenant_id=tenant.id, at=at, slug=tenant.slug, name=tenant.name, status=tenant.status
        )
    )
    return tenant


async def _remove(store: TenancyStore, tenant: Tenant, *, at: datetime) -> None:
    """Remove a tenant for good, with the users who belong to no other."""
    members = await store.members.ids()
    await erase_tenant(store, "tenancy")
    await store.users.forget(members)
    await store.removal.note(tenant.slug, at)
    store.emit(TenantDeleted(tenant_id=tenant.id, at=at, slug=tenant.slug))


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
