"""Which policy is believed, while it is being changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.transactions import Transactions
from services.ingest.domain.policy import DevicePolicy
from services.ingest.store.store import IngestStore
from services.ingest.usecases.policies import Policies

STRICT, OPEN = DevicePolicy(plain_coap=False), DevicePolicy(plain_coap=True)


class FakeDatabase:
    """Holds one tenant's policy; what it read may reach the caller late."""

    def __init__(self) -> None:
        self.policy = OPEN
        self.reads = 0
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    @asynccontextmanager
    async def begin(self, tenant_id: UUID) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(policies=self)

    async def get(self) -> DevicePolicy:
        read = self.policy
        self.reads += 1
        self.asked.set()
        await self.gate.wait()
        return read


@pytest.fixture
def database() -> FakeDatabase:
    return FakeDatabase()


@pytest.fixture
def policies(database: FakeDatabase) -> Policies:
    return Policies(cast(Transactions[IngestStore], database), SystemClock())


async def test_a_policy_that_was_read_before_a_change_was_told_is_not_believed(
    policies: Policies, database: FakeDatabase
) -> None:
    tenant_id = uuid4()
    asked = asyncio.create_task(policies.of(tenant_id))
    await database.asked.wait()
    database.policy = STRICT
    policies.changed(tenant_id, STRICT)
    database.gate.set()
    assert await asked == STRICT
    assert await policies.of(tenant_id) == STRICT


async def test_a_policy_that_was_read_before_a_change_may_have_been_missed_is_read_again(
    policies: Policies, database: FakeDatabase
) -> None:
    tenant_id = uuid4()
    asked = asyncio.create_task(policies.of(tenant_id))
    await database.asked.wait()
    database.policy = STRICT
    policies.forget()
    database.gate.set()
    assert await asked == STRICT
    assert database.reads == 2
