"""The bus when its broker is killed, or refuses to be written to."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from deploy.local.rabbitmq import RabbitMQ, find_rabbitmq
from libs.common.bus.base import Subscription
from libs.common.bus.rabbit import RabbitBus
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from tests.waiting import until

TYPE = "telemetry.received.v1"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    node = RabbitMQ(tmp_path_factory.mktemp("broker") / "rabbitmq", find_rabbitmq())
    node.start()
    yield node
    node.stop()


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
    await until(lambda: len(confirmed) > 200, "200 confirms", within_s=DEADLINE_S)

    # First a clean restart. It also lets the broker note its new queues on disk, which it is
    # known to do a second late.
    await asyncio.to_thread(node.restart)
    before = len(confirmed)
    await until(lambda: len(confirmed) > before + 200, "200 more confirms", within_s=DEADLINE_S)

    refused = 0
    await asyncio.to_thread(node.kill)
    await until(lambda: refused > 3, "the bus refuses", within_s=DEADLINE_S)
    with pytest.raises(Unavailable):
        await bus.check()
    with pytest.raises(Unavailable):
        await bus.publish([_message("into the void")])

    await asyncio.to_thread(node.start)
    before = len(confirmed)
    await until(lambda: len(confirmed) > before + 200, "200 more confirms", within_s=DEADLINE_S)
    enough.set()
    await publishing

    await until(
        lambda: set(confirmed) <= set(reader.heard),
        "all that was confirmed is read",
        within_s=DEADLINE_S,
    )
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
    bus.subscribe(Subscription("ml.points", frozenset({TYPE}), sharded=True), read_when_allowed)
    await bus.start()
    await bus.publish([_message(f"{number}") for number in range(100)])

    async def is_refused() -> bool:
        return not await _is_taken(bus, "probe")

    await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    await until(is_refused, "publishers are stopped", within_s=DEADLINE_S)
    held.set()
    await until(lambda: len(heard) >= 100, "what waited is read", within_s=DEADLINE_S)

    await asyncio.to_thread(node.control, "set_vm_memory_high_watermark", "absolute", "1GB")
    await until(lambda: _is_taken(bus, "room again"), "publishers may go on", within_s=DEADLINE_S)
    await until(lambda: "room again" in heard, "what came last is read", within_s=DEADLINE_S)
    await bus.stop()


async def _is_taken(bus: RabbitBus, said: str) -> bool:
    try:
        await bus.publish([_message(said)])
    except Unavailable:
        return False
    return True


def _message(said: str) -> Message:
    return Message(
        id=uuid4(), type=TYPE, source="tests", time=datetime.now(UTC), shard=0, body=said.encode()
    )
