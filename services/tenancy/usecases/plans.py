"""What is done with plans, and with what tenants may have by them."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict, NotFound, invalid
from libs.common.events.tenancy import QuotaTerms, TenantQuotasSet
from services.tenancy.domain.plan import PLAN_NAME, Plan, Quotas, in_force
from services.tenancy.domain.tenant import Tenant
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import usage


async def create(
    store: TenancyStore, *, name: str, description: str, quotas: Quotas, at: datetime
) -> Plan:
    """Make a plan. Raises Invalid for a name that is none, Conflict if it is taken."""
    if not PLAN_NAME.match(name):
        raise invalid("#/name", "must be 1 to 63 of a-z, 0-9 and -, with a letter or digit outside")
    plan = Plan(name, description, quotas, False, at, at, 1)
    await store.plans.add(plan)
    return plan


async def change(
    store: TenancyStore, name: str, *, description: str, quotas: Quotas, at: datetime
) -> Plan:
    """Let a plan allow something else. Its tenants are told within seconds. Raises NotFound."""
    return await store.plans.change(name, description, quotas, at)


async def remove(store: TenancyStore, name: str) -> None:
    """Remove a plan. Raises NotFound; Conflict for a built-in one, or one that a tenant has."""
    plan = await store.plans.get(name)
    if plan.is_built_in:
        raise Conflict(f"the plan {name!r} is built in; what it allows may be changed")
    await store.plans.remove(name)


async def set_own_quotas(
    store: TenancyStore, tenant_id: UUID, own: Quotas, *, at: datetime
) -> Tenant:
    """Let a tenant have other quotas than its plan says; what is not named is the plan's.

    Raises NotFound.
    """
    tenant = await store.tenants.get(tenant_id, lock=True)
    tenant = replace(tenant, own_quotas=own, updated_at=at, version=tenant.version + 1)
    return await say_quotas(store, tenant, at=at)


async def tell(store: TenancyStore, *, at: datetime) -> None:
    """Say what the tenant may have, if its plan changed since that was said last."""
    try:
        tenant = await store.tenants.get(store.tenant_id, lock=True)
    except NotFound:
        return  # removed meanwhile
    # Another replica may have been quicker.
    if tenant.plan_version != (await store.plans.get(tenant.plan)).version:
        await say_quotas(store, tenant, at=at)


async def say_quotas(store: TenancyStore, tenant: Tenant, *, at: datetime) -> Tenant:
    """Save a tenant, and say what it may have by its plan and its own quotas. Raises NotFound."""
    plan = await store.plans.get(tenant.plan, lock=True)
    tenant = replace(tenant, plan_version=plan.version)
    await store.tenants.update(tenant)
    said = TenantQuotasSet(
        tenant_id=tenant.id,
        at=at,
        plan=plan.name,
        quotas={
            resource.value: QuotaTerms(terms.most, terms.warn_percent)
            for resource, terms in in_force(plan.quotas, tenant.own_quotas).items()
        },
    )
    await store.quotas.note(said)
    store.emit(said)
    await usage.judge_all(store, at=at)
    return tenant
