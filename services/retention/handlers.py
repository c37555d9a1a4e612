"""The events retention hears."""

from libs.common.bus.subscriptions import Subscriptions
from libs.common.events.tenancy import TenantDeleted
from services.retention.store.store import RetentionStore
from services.retention.usecases import policies

subscriptions = Subscriptions[RetentionStore]("retention")


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: RetentionStore) -> None:
    """Erase what is kept of the tenant, and let its points go as soon as may be."""
    await policies.let_go(store)
