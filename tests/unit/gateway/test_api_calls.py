"""How many calls tenants may make."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID, uuid4

import pytest

from libs.common.auth.principal import Principal
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import QuotaSpent, Unavailable
from libs.common.quotas.store import Lease
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.api_calls import REFUSED_S, ApiCalls


class Tenancy:
    """Hands out ten calls at a time, or is away."""

    def __init__(self) -> None:
        self.asked: list[UUID] = []
        self.is_away = False

    async def lease_api_calls(self, tenant_id: UUID, wanted: int) -> Lease:
        self.asked.append(tenant_id)
        if self.is_away:
            raise Unavailable("tenancy is away")
        return Lease(10 if len(self.asked) < 3 else 0, 20)


class Noon:
    """A clock that stands."""

    def now(self) -> datetime:
        return datetime(2026, 11, 22, 12, tzinfo=UTC)


class Calls:
    """The calls of some tenants, at a time that is set."""

    def __init__(self) -> None:
        self.tenancy = Tenancy()
        self.time = 0.0
        transactions = cast(Transactions[GatewayStore], None)
        self.calls = ApiCalls(self.tenancy, transactions, cast(Clock, Noon()), lambda: self.time)

    async def make(self, tenant_id: UUID, number: int = 1) -> None:
        who = Principal(subject=uuid4(), tenant_id=tenant_id)
        for _ in range(number):
            await self.calls.admit(who)


async def test_tenancy_is_asked_once_for_many_calls_and_then_says_that_they_are_spent() -> None:
    calls, plant = Calls(), uuid4()
    await calls.make(plant, 20)
    assert len(calls.tenancy.asked) == 2
    for _ in range(3):
        with pytest.raises(QuotaSpent):
            await calls.make(plant)
    assert len(calls.tenancy.asked) == 3


async def test_while_tenancy_is_away_it_is_asked_every_few_seconds_whoever_calls() -> None:
    calls = Calls()
    calls.tenancy.is_away = True
    plants = [uuid4() for _ in range(50)]
    for plant in plants:
        await calls.make(plant, 3)
    assert len(calls.tenancy.asked) == 1
    calls.time = REFUSED_S + 1
    calls.tenancy.is_away = False
    await calls.make(plants[0], 3)
    assert calls.tenancy.asked == plants[:1] * 2
