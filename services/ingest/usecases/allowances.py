"""What tenants' devices may still send by the tenants' plans: points a day, points a second, and room to store.

Of a day's points each process leases some in advance, so that the way of a point costs no question and
all processes together take no more than the plan allows. What is beyond goes to quarantine, with its
reason, or is refused where the protocol can say so. Who sends faster than the plan allows is read
more slowly, or told to come again.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, date
from uuid import UUID
from weakref import WeakValueDictionary

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import QuotaSpent
from libs.common.quotas.store import spent
from libs.common.quotas.terms import Resource
from services.ingest.domain.quota import Quota, Rate
from services.ingest.store.store import IngestStore

BURST_S = 5.0
"""So many seconds' points may come at once."""
BEYOND = "quota_exceeded"
"""The reason that stands in the quarantine."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Allowance:
    """What one tenant's devices may still send to this process."""

    left: int | None
    """Points of the day; None: any number."""
    most: int | None
    day: date
    is_full: bool = False
    """Whether the tenant has stored all that it may."""
    is_spent: bool = False
    """Whether there is no more of the day to be had than is left."""
    rate: Quota | None = None
    is_stale: bool = False
    """Whether it is to be asked for anew."""

    def admits(self, points: int) -> bool:
        """Whether so many points may be taken at once, without asking anybody."""
        if self.is_stale or self.is_full or (self.left is not None and self.left < points):
            return False
        return self.rate is None or self.rate.wait_s(_now()) <= 0

    def spend(self, points: int) -> None:
        """Count points that are taken."""
        if self.left is not None:
            self.left -= points
        if self.rate is not None:
            self.rate.spend(points, _now())


class Allowances:
    """The tenants' allowances in this process. One an event loop."""

    def __init__(self, transactions: Transactions[IngestStore], clock: Clock) -> None:
        self._transactions = transactions
        self._clock = clock
        self._known: dict[UUID, Allowance] = {}
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def known(self, tenant_id: UUID) -> Allowance | None:
        """Return what is known of a tenant now; None: it must be asked for."""
        return self._known.get(tenant_id)

    def check(self, tenant_id: UUID) -> None:
        """Raise QuotaSpent if it is known that the tenant can have no more taken now."""
        allowance = self._known.get(tenant_id)
        if allowance is None or allowance.is_stale:
            return
        now = self._clock.now()
        if allowance.is_full:
            raise spent(Resource.STORAGE_BYTES, None, now)
        today = now.astimezone(UTC).date()
        if allowance.is_spent and allowance.left == 0 and allowance.day == today:
            raise spent(Resource.POINTS_PER_DAY, allowance.most, now)
        if allowance.rate is not None and (wait_s := allowance.rate.wait_s(_now())) > 0:
            rate = allowance.rate.rate.per_second
            raise QuotaSpent(
                f"quota {Resource.POINTS_PER_SECOND}: the tenant's plan allows {rate:g} points a second",
                retry_after_s=wait_s,
            )

    async def take(self, tenant_id: UUID, points: int) -> int:
        """Take so many points of the tenant's; return how many of them may be.

        Waits while the tenant is faster than it may. Raises what is transient.
        """
        turn = self._turns.setdefault(tenant_id, asyncio.Lock())
        async with turn:
            today = self._clock.now().astimezone(UTC).date()
            allowance = self._known.get(tenant_id)
            if allowance is None or allowance.is_stale or allowance.day != today:
                allowance = await self._ask(tenant_id, points, today)
            elif allowance.left is not None and allowance.left < points and not allowance.is_spent:
                more = await self._ask(tenant_id, points - allowance.left, today)
                if more.left is not None:
                    more.left += allowance.left
                more.rate = allowance.rate
                allowance = more
            self._known[tenant_id] = allowance
            if allowance.is_full:
                return 0
            if allowance.rate is not None and (wait_s := allowance.rate.wait_s(_now())) > 0:
                await asyncio.sleep(wait_s)
            taken = points if allowance.left is None else min(points, allowance.left)
            allowance.spend(taken)
            return taken

    def forget(self, tenant_id: UUID) -> None:
        """Ask anew what a tenant's devices may send: its plan has changed."""
        allowance = self._known.get(tenant_id)
        if allowance is not None:
            allowance.is_stale = True

    async def forget_all(self) -> None:
        """Ask anew for all: the net below the events, and how new room is found. By the clock."""
        today = self._clock.now().astimezone(UTC).date()
        for allowance in self._known.values():
            # What is leased of the day is kept as long as it lasts, and the day does.
            if allowance.is_full or not allowance.left or allowance.day != today:
                allowance.is_stale = True

    async def _ask(self, tenant_id: UUID, points: int, today: date) -> Allowance:
        async with self._transactions.begin(tenant_id) as store:
            lease = await store.quotas.lease(Resource.POINTS_PER_DAY, points, today)
            terms = await store.quotas.all()
            storage = terms.get(Resource.STORAGE_BYTES)
            is_full = (
                storage is not None
                and storage.most is not None
                and await store.usage.stored_bytes() >= storage.most
            )
        speed = terms.get(Resource.POINTS_PER_SECOND)
        rate = None
        if speed is not None and speed.most is not None:
            rate = Quota(Rate(max(speed.most, 0.01), max(speed.most, 0.01) * BURST_S), _now())
        is_spent = lease.amount is not None and lease.amount < points
        return Allowance(lease.amount, lease.most, today, is_full, is_spent, rate)


def _now() -> float:
    return asyncio.get_running_loop().time()
