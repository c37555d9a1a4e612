"""Who asks for a session while the database is away, or is gone before it answers."""

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from libs.common.errors import Unavailable
from services.ingest.domain.device import Source
from services.ingest.protocols.mqtt import keeper as keeping
from services.ingest.protocols.mqtt.keeper import Keeper
from services.ingest.protocols.mqtt.memory import Kept
from services.ingest.store.mqtt_sessions import Taken


class Sessions:
    """A store of sessions that answers when it may."""

    def __init__(self) -> None:
        self.is_there = asyncio.Event()
        self.taken: list[UUID] = []

    async def write(self, *_: object) -> None:
        """Write nothing, once it may."""
        await self.is_there.wait()

    async def take(self, tenant_id: UUID, device_id: UUID, *_: object, **__: object) -> Taken:
        """Find none."""
        self.taken.append(device_id)
        return Taken(None, is_elsewhere=False)


def source() -> Source:
    return Source(uuid4(), uuid4(), 1, 0, {})


async def test_who_comes_back_while_nothing_can_be_written_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeping, "WRITTEN_S", 0.01)
    sessions = Sessions()
    keeper = Keeper(cast(Any, sessions))
    device = source()
    written = keeper.save(device, Kept(), 60, is_over=True)
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await keeper.take(device, 60, resumes=True, is_wanted=lambda: True)
    assert sessions.taken == []
    sessions.is_there.set()
    await written
    assert await keeper.take(device, 60, resumes=True, is_wanted=lambda: True) is None
    assert sessions.taken == [device.device_id]
    await keeper.stop()


async def test_no_session_is_taken_for_a_connection_that_is_over_by_then() -> None:
    sessions = Sessions()
    keeper = Keeper(cast(Any, sessions))
    device = source()
    keeper.save(device, Kept(), 60, is_over=True)
    is_open = True
    asked = asyncio.create_task(keeper.take(device, 60, resumes=True, is_wanted=lambda: is_open))
    await asyncio.sleep(0)
    is_open = False
    sessions.is_there.set()
    assert await asked is None
    assert sessions.taken == []
    await keeper.stop()
