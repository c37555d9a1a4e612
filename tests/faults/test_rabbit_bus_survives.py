"""The bus when its broker is killed, or refuses to be written to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from deploy.local.rabbitmq import RabbitMQ, find_rabbitmq
from libs.common.bus.base import Subscription
from libs.common.bus.rabbit import RabbitBus
from libs.common.errors import Unavailable
from libs.common.events.base import Message

TYPE = "telemetry.received.v1"
DEADLINE_S = 60.0


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[RabbitMQ]:
    node = RabbitMQ(tmp_path / "rabbitmq", find_rabbitmq())
    await asyncio.to_thread(node.start)
    yield node
    await asyncio.to_thread(node.stop)


class Reader:
    """Remembers the bodies it was given."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def __call__(self, messages: Sequence[Message]) -> None:
        self.heard += [message.body.decode() for message in messages]


@pytest.mark.timeout(240)
async def test_a_killed_broker_loses_nothing_confirmed_and_all_goes_on_after_its_return(
    node: RabbitMQ,
) -> None:
    reader = Reader()
    bus = RabbitBus(node.url, service="tests", shards=1, publish_timeout_s=3.0)
    bus.subscribe(Subscription("rules.points", frozenset({TYPE}), sharded=True, batch=10), reader)
    await bus.start()
    confirmed: list[str] = []
    refused = 0
    enough = asyncio.Event()

    async def publish_without_pause() -> None:
        nonlocal refused
        number = 0
        while not enough.is_set():
            number += 1
            try:
                await bus.publish([_message(f"{number}")])
                confirmed.append(f"{number}")
            except Unavailable:
                refused += 1
                await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish_without_pause())
    await _eventually(lambda: len(confirmed) > 200)

    # First a clean restart. It also lets the broker note its new queues on disk, which it is
    # known to do a second late.
    await asyncio.to_thread(node.restart)
    before = len(confirmed)
    await _eventually(lambda: len(confirmed) > before + 200)

    refused = 0
    await asyncio.to_thread(node.kill)
    await _eventually(lambda: refused > 3)
    with pytest.raises(Unavailable):
        await bus.check()
    with pytest.raises(Unavailable):
        await bus.publish([_message("into the void")])

    await asyncio.to_thread(node.start)
    before = len(confirmed)
    await _eventually(lambda: len(confirmed) > before + 200)
    enough.set()
    await publishing

    await _eventually(lambda: set(confirmed) <= set(reader.heard))
    await bus.check()
    await bus.stop()


@pytest.mark.timeout(240)
async def test_a_broker_short_of_memory_stops_publishers_and_not_readers(node: RabbitMQ) -> None:
    held = asyncio.Event()
    heard: list[str] = []

    async def read_when_allowed(messages: Sequence[Message]) -> None:
        await held.wait()
        heard.extend(message.body.decode() for message in messages)

    bus = RabbitBus(node.url, service="tests", shards=1, publish_timeout_s=1.0)
    bus.subscribe(Subscription("rules.points", frozenset({TYPE}), sharded=True), read_when_allowed)
    await bus.start()
    await bus.publish([_message(f"{number}") for number in range(100)])

    await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    await _eventually_raises(bus)
    held.set()
    await _eventually(lambda: len(heard) >= 100)

    await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "absolute", "1GB")
    await _eventually_publishes(bus, "room again")
    await _eventually(lambda: "room again" in heard)
    await bus.stop()


async def _eventually(holds: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not holds():
        assert loop.time() < deadline, "it did not come about in time"
        await asyncio.sleep(0.02)


async def _eventually_raises(bus: RabbitBus) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await bus.publish([_message("probe")])
            except Unavailable:
                return


async def _eventually_publishes(bus: RabbitBus, said: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(Unavailable):
                await bus.publish([_message(said)])
                return


def _message(said: str) -> Message:
    return Message(
        id=uuid4(), type=TYPE, source="tests", time=datetime.now(UTC), shard=0, body=said.encode()
    )
