"""The events tenancy hears: what its tenants use, and what all services record for the audit trail."""

from libs.common.bus.subscriptions import Subscriptions
from libs.common.events.audit import AuditRecorded
from libs.common.events.usage import UsageCounted
from libs.common.quotas.terms import Resource
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import audit, usage

subscriptions = Subscriptions[TenancyStore]("tenancy")


@subscriptions.on(UsageCounted)
async def on_usage_counted(event: UsageCounted, store: TenancyStore) -> None:
    """Add up what a tenant used. Of one that is gone nothing is kept."""
    if await store.tenants.exists():
        await usage.count(
            store,
            Resource(event.resource),
            event.amount,
            day=event.day,
            how=event.how,
            at=event.at,
        )


@subscriptions.on(AuditRecorded)
async def on_audit_recorded(event: AuditRecorded, store: TenancyStore) -> None:
    """Add it to the tenant's trail."""
    await audit.record(store, event)
