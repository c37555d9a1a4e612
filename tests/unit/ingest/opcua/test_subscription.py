"""Our subscription, before a server that means harm: whatever it answers, for ever, has an end."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest
from asyncua import ua

from libs.common.errors import Unavailable
from services.ingest.protocols.opcua.health import Health
from services.ingest.protocols.opcua.items import Items
from services.ingest.protocols.opcua.notifications import Published
from services.ingest.protocols.opcua.points import Points
from services.ingest.protocols.opcua.progress import Progress
from services.ingest.protocols.opcua.subscription import LONGEST_SILENCE_S, Subscription
from tests.unit.ingest.opcua.server import NOON, Memory, Server, a_connector, a_reception
from tests.waiting import until


class HeldSubscription(Subscription):
    """A subscription of which a test says when a notification is durable."""

    durable: dict[int, asyncio.Event]
    progress: Progress

    async def _take(self, published: Published) -> None:
        await self.durable[published.sequence].wait()


def a_subscription(server: Server, memory: Memory | None = None) -> HeldSubscription:
    connector, reception = a_connector(memory), a_reception()
    health, progress = Health(lambda state, reason: None), Progress(connector)
    made = HeldSubscription(
        server.session,
        connector.settings,
        reception,
        Items(connector, reception, health),
        Points(reception, health),
        cast(Any, None),
        progress,
        health,
    )
    made.progress = progress
    return made


def published(sequence: int) -> ua.PublishResponse:
    """Return a notification of one value, published so many seconds after noon."""
    response = ua.PublishResponse()
    message = response.Parameters.NotificationMessage
    message.SequenceNumber = sequence
    message.PublishTime = NOON + timedelta(seconds=sequence)
    change = ua.DataChangeNotification()
    change.MonitoredItems = [ua.MonitoredItemNotification(0, ua.DataValue(1.0))]
    message.NotificationData = [change]
    return response


async def test_what_is_not_durable_yet_is_read_again_though_what_came_after_it_is() -> None:
    answers = [published(1), published(2), published(3)]
    server = Server(lambda request: answers.pop(0) if answers else None)
    memory = Memory()
    subscription = a_subscription(server, memory)
    subscription.durable = {number: asyncio.Event() for number in (1, 2, 3)}
    subscription._silence_s = 60
    subscription.progress.is_caught_up = True
    tasks = [asyncio.create_task(subscription._publish()) for _ in range(3)]

    async def upto(seconds: int, acknowledged: int) -> None:
        """Wait until so many are acknowledged; then all up to that time is remembered as durable."""
        await until(lambda: len(server.asked) == 3 + acknowledged, "it asks for more")
        assert memory["until"] / 1_000_000 - NOON.timestamp() == seconds

    try:
        await until(lambda: len(subscription.progress._under_way) == 3, "all are under way")
        assert not memory
        subscription.durable[3].set()
        await upto(1, acknowledged=1)
        subscription.durable[1].set()
        await upto(1, acknowledged=2)
        subscription.durable[2].set()
        await upto(2, acknowledged=3)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    acknowledged = [
        each.SequenceNumber
        for request in server.asked
        for each in request.Parameters.SubscriptionAcknowledgements
    ]
    assert acknowledged == [3, 1, 2]


@pytest.mark.parametrize("revised_ms", [1e300, float("inf"), float("nan"), -1.0])
async def test_a_server_is_not_waited_for_longer_than_ten_minutes_whatever_it_wants(
    revised_ms: float,
) -> None:
    response = ua.CreateSubscriptionResponse()
    response.Parameters.RevisedPublishingInterval = revised_ms
    response.Parameters.RevisedMaxKeepAliveCount = 2**32 - 1
    subscription = a_subscription(Server(lambda _: response))
    await subscription.create()
    assert 1 <= subscription._silence_s <= LONGEST_SILENCE_S


async def test_a_server_that_says_nothing_any_more_is_given_up() -> None:
    subscription = a_subscription(Server(lambda _: None))
    subscription._silence_s = 0.01
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await subscription._publish()
    assert asyncio.get_running_loop().time() - began < 5


async def test_a_server_that_takes_fewer_questions_at_a_time_keeps_one() -> None:
    def too_many(_: Any) -> ua.PublishResponse:
        response = ua.PublishResponse()
        response.ResponseHeader.ServiceResult = ua.StatusCode(
            ua.StatusCodes.BadTooManyPublishRequests
        )
        return response

    subscription = a_subscription(Server(too_many))
    for _ in range(3):
        await subscription._publish()
    with pytest.raises(Unavailable, match="BadTooManyPublishRequests"):
        await subscription._publish()
