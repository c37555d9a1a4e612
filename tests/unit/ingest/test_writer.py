"""What several shards bring is written together; what goes wrong with one is not the others' fault."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.events.ingest import TelemetryReceived
from services.ingest.handlers import Writer
from services.ingest.store.landing import Landed, Landing


class FakeLanding:
    """Lands whatever comes, as the test says."""

    def __init__(self) -> None:
        self.landed: list[UUID] = []
        self.calls = 0
        self.before: Callable[[Sequence[TelemetryReceived]], Awaitable[None]] | None = None

    async def land(self, batches: Sequence[TelemetryReceived]) -> Landed:
        self.calls += 1
        if self.before is not None:
            await self.before(batches)
        self.landed += [batch.id for batch in batches]
        return Landed()


@pytest.fixture
def landing() -> FakeLanding:
    return FakeLanding()


@pytest.fixture
def writer(landing: FakeLanding) -> Writer:
    return Writer(cast(Landing, landing), 5_000, CollectorRegistry())


def message(shard: int) -> Message:
    return TelemetryReceived(
        at=datetime.now(UTC), shard=shard, tenants=b"", series=b"", ts=b"", values=b"", quality=b""
    ).to_message()


async def test_one_poisonous_batch_fails_alone(writer: Writer, landing: FakeLanding) -> None:
    messages = [message(shard) for shard in range(4)]
    poison = messages[2].id

    async def refuse_poison(batches: Sequence[TelemetryReceived]) -> None:
        await asyncio.sleep(0)
        if poison in [batch.id for batch in batches]:
            raise ValueError("poison")

    landing.before = refuse_poison
    results = await asyncio.gather(*(writer.write([m]) for m in messages), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), ValueError, type(None)]
    assert set(landing.landed) == {m.id for m in messages} - {poison}


async def test_while_the_database_is_away_nobody_is_tried_apart(
    writer: Writer, landing: FakeLanding
) -> None:
    async def be_away(_: Sequence[TelemetryReceived]) -> None:
        await asyncio.sleep(0)
        raise Unavailable("the database is away")

    landing.before = be_away
    results = await asyncio.gather(
        *(writer.write([message(shard)]) for shard in range(4)), return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) for result in results)
    assert landing.calls <= 2


async def test_a_writer_that_is_cancelled_leaves_the_others_batches_to_be_written(
    writer: Writer, landing: FakeLanding
) -> None:
    """The bus cancels one shard's handler, in whose turn the other shards' batches were taken."""
    began = asyncio.Event()
    gate = asyncio.Event()

    async def wait_at_the_gate(_: Sequence[TelemetryReceived]) -> None:
        began.set()
        await gate.wait()

    landing.before = wait_at_the_gate
    messages = [message(shard) for shard in range(3)]
    first, *others = [asyncio.create_task(writer.write([m])) for m in messages]
    async with asyncio.timeout(30):
        await began.wait()
        first.cancel()
        gate.set()
        await asyncio.gather(*others)
    assert set(landing.landed) == {m.id for m in messages[1:]}
    assert first.cancelled()
    assert landing.calls <= 3
