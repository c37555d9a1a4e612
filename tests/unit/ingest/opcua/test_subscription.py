"""Our subscription, before a server that means harm: whatever it answers, for ever, has an end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_to_binary

from services.ingest.protocols.health import Health
from services.ingest.protocols.opcua.bounds import MOST_ELEMENTS
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
    server: Server

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
    response.Parameters.MoreNotifications = False
    message = response.Parameters.NotificationMessage
    message.SequenceNumber = sequence
    message.PublishTime = NOON + timedelta(seconds=sequence)
    change = ua.DataChangeNotification()
    change.MonitoredItems = [ua.MonitoredItemNotification(0, ua.DataValue(1.0))]
    message.NotificationData = [change]
    return response


def seconds_after_noon(us: int | None) -> float | None:
    return None if us is None else us / 1_000_000 - NOON.timestamp()


@asynccontextmanager
async def three_under_way(*answers: ua.PublishResponse) -> AsyncIterator[HeldSubscription]:
    """Publish three notifications, of which none is durable yet; all was, that came until noon."""
    left = list(answers)
    server = Server(lambda request: left.pop(0) if left else None)
    subscription = a_subscription(server, Memory(until=round(NOON.timestamp() * 1_000_000)))
    subscription.durable = {number: asyncio.Event() for number in (1, 2, 3)}
    subscription.server = server
    subscription._silence_s = 60
    subscription.progress.is_caught_up = True
    tasks = [asyncio.create_task(subscription._publish()) for _ in range(3)]
    try:
        await until(lambda: len(subscription.progress._under_way) == 3, "all are under way")
        yield subscription
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def made_durable(subscription: HeldSubscription, sequence: int) -> float | None:
    """Let one be durable; return up to when all is then, in seconds after noon."""
    asked = len(subscription.server.asked)
    subscription.durable[sequence].set()
    await until(lambda: len(subscription.server.asked) > asked, "it is acknowledged")
    return seconds_after_noon(subscription.progress.until)


async def test_what_is_not_durable_yet_is_read_again_though_what_came_after_it_is() -> None:
    async with three_under_way(published(1), published(2), published(3)) as subscription:
        assert await made_durable(subscription, 3) == 0
        # What the second holds may have changed right after the first was published.
        assert await made_durable(subscription, 1) == 1
        assert await made_durable(subscription, 2) == 3
        acknowledged = [
            each.SequenceNumber
            for request in subscription.server.asked
            for each in request.Parameters.SubscriptionAcknowledgements
        ]
    assert acknowledged == [3, 1, 2]


async def test_what_the_next_notification_brings_has_changed_before_this_one() -> None:
    first, second = published(1), published(2)
    first.Parameters.MoreNotifications = second.Parameters.MoreNotifications = True
    async with three_under_way(first, second, published(3)) as subscription:
        assert await made_durable(subscription, 1) == 0
        assert await made_durable(subscription, 2) == 0
        assert await made_durable(subscription, 3) == 3


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
    def too_many(_: Any) -> ua.ServiceFault:
        fault = ua.ServiceFault()
        fault.ResponseHeader.ServiceResult = ua.StatusCode(ua.StatusCodes.BadTooManyPublishRequests)
        return fault

    subscription = a_subscription(Server(too_many))
    for _ in range(3):
        await subscription._publish()
    with pytest.raises(ua.uaerrors.BadTooManyPublishRequests):
        await subscription._publish()


async def test_each_answer_is_a_sign_of_life_for_all_requests_that_wait() -> None:
    may_answer = asyncio.Event()

    class Slow(Server):
        async def _send_request(self, request: Any, timeout: float = 0) -> Buffer:
            if self.asked:
                return await super()._send_request(request, timeout)
            self.asked.append(request)
            await may_answer.wait()
            return Buffer(bytes(struct_to_binary(ua.PublishResponse())))

    subscription = a_subscription(Slow(lambda _: None))
    subscription._silence_s = 60
    first = asyncio.create_task(subscription._ask([]))
    second = asyncio.create_task(subscription._ask([]))
    try:
        await until(lambda: len(subscription._waiting) == 2, "two requests wait")
        given_up_at = max(wait.when() or 0 for wait in subscription._waiting)
        may_answer.set()
        await first
        (wait,) = subscription._waiting
        assert (wait.when() or 0) > given_up_at
    finally:
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)


async def test_so_many_notifications_are_asked_for_as_are_taken() -> None:
    server = Server(lambda _: ua.CreateSubscriptionResponse())
    await a_subscription(server).create()
    (request,) = server.asked
    assert 0 < request.Parameters.MaxNotificationsPerPublish <= MOST_ELEMENTS / 2


async def test_time_alone_is_not_remembered_with_each_answer_but_what_goes_on_is() -> None:
    remembered: list[dict[str, Any]] = []
    progress = Progress(replace(a_connector(), remember=remembered.append))
    progress.is_caught_up = True
    for us in range(1, 100):
        progress.reach(us)
    assert remembered == [{"until": 1}]
    progress.begins("press", "oil low")
    progress.begins("press", "oil low")
    progress.reach(100)
    progress.reach(101)
    assert remembered[1:] == [{"until": 100, "alarms": [("press", "oil low")]}]
    progress.ends("press", "oil low")
    progress.reach(102)
    progress.reach(103)
    assert remembered[2:] == [{"until": 102}]
    progress.leave()
    assert remembered[3:] == [{"until": 103}]
