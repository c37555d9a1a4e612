"""The events retention hears."""

from uuid import uuid5

from libs.common.bus.subscriptions import Subscriptions
from libs.common.events.tenancy import TenantDeleted
from services.retention.store.store import RetentionStore
from services.retention.usecases import policies

subscriptions = Subscriptions[RetentionStore]("retention")


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: RetentionStore) -> None:
    """Let the tenant's points go as soon as may be."""
    await policies.let_go(store, policy_id=uuid5(event.id, "policy"), now=event.at)
