"""How many calls tenants make: counted for their usage, and held to what their plans allow a day."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date
from typing import Protocol
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from libs.common.auth.principal import Principal
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import Unavailable
from libs.common.events.usage import UsageCounted
from libs.common.quotas.store import Lease, spent
from libs.common.quotas.terms import Resource
from services.gateway.store.store import GatewayStore

log = structlog.get_logger(__name__)

BELIEVED_S = 60.0
"""How long it is believed that a tenant may make any number of calls. A change is told by event."""
REFUSED_S = 5.0
"""How long a tenant is refused, or let pass while tenancy is away, before tenancy is asked again."""


class LeaseSource(Protocol):
    """Knows how many calls tenants may make."""

    async def lease_api_calls(self, tenant_id: UUID, wanted: int) -> Lease:
        """Hand out some of a tenant's calls of today. Raises Unavailable."""
        ...


@dataclass(slots=True)
class _Held:
    """What is left of a lease; `left` None: any number. It holds on its day, until a moment of the loop's."""

    left: int | None
    most: int | None
    day: date
    until: float


class ApiCalls:
    """The calls of all tenants through this process."""

    def __init__(
        self,
        source: LeaseSource,
        transactions: Transactions[GatewayStore],
        clock: Clock,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._source = source
        self._transactions = transactions
        self._clock = clock
        self._monotonic = monotonic or (lambda: asyncio.get_running_loop().time())
        self._held: dict[UUID, _Held] = {}
        self._away_until = 0.0
        """Until then, by the loop's time, tenancy is not asked for anybody."""
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._generation = 0
        """Moves when a quota changed: an answer that was under way then may be the old one."""
        self._counted: dict[tuple[UUID, date], int] = {}
        self._untold: list[UsageCounted] = []

    async def admit(self, who: Principal) -> None:
        """Count a call of a tenant. Raises QuotaSpent if it has made all it may today."""
        tenant_id, now = who.tenant_id, self._clock.now()
        today = now.astimezone(UTC).date()
        held = self._usable(tenant_id, today)
        if held is None:
            turn = self._turns.setdefault(tenant_id, asyncio.Lock())
            async with turn:
                held = self._usable(tenant_id, today) or await self._lease(tenant_id, today)
        if held.left is not None:
            if held.left <= 0:
                raise spent(Resource.API_CALLS_PER_DAY, held.most, now)
            held.left -= 1
        self._counted[tenant_id, today] = self._counted.get((tenant_id, today), 0) + 1

    def forget(self, tenant_id: UUID) -> None:
        """Ask anew what a tenant may do."""
        self._generation += 1
        self._held.pop(tenant_id, None)

    def forget_all(self) -> None:
        """Ask anew for everybody: a change may have been missed."""
        self._generation += 1
        self._held.clear()

    async def tell(self) -> None:
        """Say what was counted since the last time. What could not be said is said the next time, once."""
        now = self._clock.now()
        counted, self._counted = self._counted, {}
        self._untold += [
            UsageCounted(
                tenant_id=tenant_id,
                at=now,
                day=day,
                resource=Resource.API_CALLS_PER_DAY.value,
                how="added",
                amount=amount,
            )
            for (tenant_id, day), amount in counted.items()
        ]
        telling = list(self._untold)
        if not telling:
            return
        tenants = {event.tenant_id for event in telling}
        async with self._transactions.begin(*tenants) as store:
            for event in telling:
                store.emit(event)
        # Those that are said a second time, as nobody knew whether they were, have the same ids.
        del self._untold[: len(telling)]

    def _usable(self, tenant_id: UUID, today: date) -> _Held | None:
        held = self._held.get(tenant_id)
        if held is None or held.day != today:
            return None
        if held.left is not None and held.left > 0:
            return held
        return held if held.until > self._monotonic() else None

    async def _lease(self, tenant_id: UUID, today: date) -> _Held:
        generation = self._generation
        if self._away_until > self._monotonic():
            return self._keep(tenant_id, _Held(None, None, today, self._away_until))
        try:
            lease = await self._source.lease_api_calls(tenant_id, 1)
        except Unavailable as error:
            log.warning("calls are let pass uncounted against the plan", cause=error.detail)
            self._away_until = self._monotonic() + REFUSED_S
            return self._keep(tenant_id, _Held(None, None, today, self._away_until))
        # What was granted is good as long as it lasts; then it is asked for more.
        believed_s = {None: BELIEVED_S, 0: REFUSED_S}.get(lease.amount, 0.0)
        held = _Held(lease.amount, lease.most, today, self._monotonic() + believed_s)
        return held if generation != self._generation else self._keep(tenant_id, held)

    def _keep(self, tenant_id: UUID, held: _Held) -> _Held:
        self._held[tenant_id] = held
        return held
