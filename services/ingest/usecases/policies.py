"""What a tenant lets its devices do."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.events.ingest import DevicePolicyChanged
from services.ingest.domain.policy import DevicePolicy
from services.ingest.store.store import IngestStore

REMEMBERED = 10_000
REMEMBERED_FOR = timedelta(minutes=1)
"""How long a policy is believed. A change is told by event, at once; this is the net below it."""


async def change(store: IngestStore, policy: DevicePolicy, *, at: datetime) -> None:
    """Set the tenant's policy, and tell all who go by it."""
    await store.policies.put(policy, at=at)
    store.emit(DevicePolicyChanged(tenant_id=store.tenant_id, at=at, plain_coap=policy.plain_coap))


class Policies:
    """The tenants' policies, as one process knows them."""

    def __init__(self, transactions: Transactions[IngestStore], clock: Clock) -> None:
        self._transactions = transactions
        self._clock = clock
        self._known: OrderedDict[UUID, tuple[DevicePolicy, datetime]] = OrderedDict()
        """With when they were read, in that order."""
        self._changes = 0
        """How many were told, or may have been missed."""
        self.on_changed: list[Callable[[UUID, DevicePolicy], None]] = []
        """Called with a tenant and its new policy."""

    async def of(self, tenant_id: UUID) -> DevicePolicy:
        """Return a tenant's policy. Raises Unavailable if it cannot be read now."""
        while True:
            now = self._clock.now()
            known = self._known.get(tenant_id)
            if known is not None and now - known[1] < REMEMBERED_FOR:
                return known[0]
            changes = self._changes
            async with self._transactions.begin(tenant_id) as store:
                policy = await store.policies.get()
            if changes == self._changes:
                self._keep(tenant_id, policy, now)
                return policy
            # What was read may be older than a change told meanwhile, which will not be told again.

    def changed(self, tenant_id: UUID, policy: DevicePolicy) -> None:
        """Go by a new policy from now on."""
        self._changes += 1
        self._keep(tenant_id, policy, self._clock.now())
        for call in self.on_changed:
            call(tenant_id, policy)

    def forget(self) -> None:
        """Believe nothing any more: a change may have been missed."""
        self._changes += 1
        self._known.clear()

    def _keep(self, tenant_id: UUID, policy: DevicePolicy, at: datetime) -> None:
        self._known[tenant_id] = (policy, at)
        self._known.move_to_end(tenant_id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
