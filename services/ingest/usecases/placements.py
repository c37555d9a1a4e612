"""Saying where devices are, for those who keep what belongs to them."""

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.events.ingest import DevicesPlaced
from services.ingest.store.placements import Unsaid
from services.ingest.store.store import IngestStore

AT_ONCE = 1_000
"""Devices of one event, or twice as many at most."""


async def say_places(unsaid: Unsaid, transactions: Transactions[IngestStore], clock: Clock) -> None:
    """Say of every device that was moved where it is now.

    By the clock, and not where it is moved: that may be by a group far above it, by a sheet, or before
    anybody listened. Each is said in the order of its moves, at least the last.
    """
    for tenant_id in await unsaid.tenants():
        while True:
            async with transactions.begin(tenant_id) as store:
                taken = await store.placements.take(AT_ONCE)
                if taken is None:
                    break
                number, places = taken
                store.emit(
                    DevicesPlaced(tenant_id=tenant_id, at=clock.now(), number=number, places=places)
                )
