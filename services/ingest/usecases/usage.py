"""Telling what tenants use of the historian."""

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.events.usage import UsageCounted
from libs.common.quotas.terms import Resource
from services.ingest.store.store import IngestStore
from services.ingest.store.usage import AT_ONCE, UsageOfAll


async def tell_usage(
    usage: UsageOfAll, transactions: Transactions[IngestStore], clock: Clock
) -> None:
    """Say what changed since it was said last: of a day's points all so far, so that nothing is counted twice."""
    while untold := await usage.untold():
        async with transactions.begin(*{one.tenant_id for one in untold}) as store:
            await store.usage.note_told(untold)
            for one in untold:
                store.emit(
                    UsageCounted(
                        tenant_id=one.tenant_id,
                        at=clock.now(),
                        day=one.day,
                        resource=one.resource.value,
                        how="total" if one.resource is Resource.POINTS_PER_DAY else "standing",
                        amount=one.amount,
                    )
                )
        if len(untold) < AT_ONCE:
            return
