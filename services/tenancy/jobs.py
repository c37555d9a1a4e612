"""What tenancy does by the clock."""

from datetime import timedelta

from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.idempotency import trim_idempotency_keys
from libs.common.db.transactions import Transactions
from services.tenancy.store.removals import removed_before
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import tenants


async def keep_house(engine: Database, keys_kept: timedelta) -> None:
    """Forget old answers to requests with a key."""
    await trim_idempotency_keys(engine, "tenancy", keys_kept)


async def remove_again(
    engine: Database, transactions: Transactions[TenancyStore], clock: Clock, after: timedelta
) -> None:
    """Say once more of the tenants that were removed that long ago that they are no more."""
    now = clock.now()
    for tenant_id in await removed_before(engine, now - after):
        async with transactions.begin(tenant_id) as store:
            await tenants.remove_again(store, at=now)
