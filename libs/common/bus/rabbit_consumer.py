"""One queue and its handler: batches in order, and what becomes of those that fail."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage

from libs.common.bus.base import Handle, Subscription
from libs.common.bus.counts import Counts
from libs.common.bus.outcome import Outcome, outcome_of
from libs.common.bus.rabbit_envelope import to_message
from libs.common.bus.rabbit_link import BROKEN, Link, closing_is_an_error, pause_s
from libs.common.errors import Malformed, Unavailable
from libs.common.events.base import Message
from libs.common.tasks import end, is_own_cancellation

log = structlog.get_logger(__name__)

SMALLEST_PREFETCH = 16
FIRST_RETRY_S = 0.2
LONGEST_RETRY_S = 30.0
SETTLE_S = 5.0

DeclareQueue = Callable[[AbstractConnection], Awaitable[str]]


@dataclass(slots=True, eq=False)
class Delivery:
    """A message in our hands: the broker waits for its acknowledgement on that channel."""

    raw: DeliveredMessage
    channel: AbstractChannel
    tag: int
    message: Message
    attempts: int = 0

    @property
    def is_stale(self) -> bool:
        """Whether the channel has gone: the broker delivers the message again, perhaps elsewhere."""
        return self.channel.is_closed


BuryLetter = Callable[[DeliveredMessage, str, str, int], Awaitable[None]]
"""Publishes a dead letter (the message, the reason's kind, its text, attempts); raises Unavailable."""


class QueueConsumer:
    """Takes one queue's messages, a batch at a time, until `stop`.

    A message to be tried again is kept here, unacknowledged, while its neighbours pass: giving it
    back to the broker would count as a delivery each time. Should this process end, the broker
    gives it, and all else that is unacknowledged, to the next.
    """

    def __init__(
        self,
        link: Link,
        subscription: Subscription,
        handle: Handle,
        counts: Counts,
        *,
        declare: DeclareQueue,
        bury: BuryLetter,
    ) -> None:
        self._link = link
        self._subscription = subscription
        self._handle = handle
        self._counts = counts
        self._declare = declare
        self._bury = bury
        self._waiting: deque[Delivery] = deque()
        self._held: set[Delivery] = set()
        """Failed once, to be tried again; `_due` are those of them whose time has come."""
        self._due: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._opened = asyncio.Event()
        self._channel: AbstractChannel | None = None
        self._consumer_tag: str | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._closer: asyncio.Future[None] | None = None

    @property
    def name(self) -> str:
        return self._subscription.name

    @property
    def is_open(self) -> bool:
        return self._channel is not None and not self._channel.is_closed

    @property
    def has_ended(self) -> bool:
        """Whether nobody takes messages any more, though nobody said `stop`."""
        return any(task is not None and task.done() for task in (self._keeper, self._worker))

    def start(self) -> None:
        """Begin to consume as soon as there is a connection."""
        name = self._subscription.name
        self._keeper = asyncio.create_task(
            self._link.keep_channel(self._open), name=f"bus.queue.{name}"
        )
        self._worker = asyncio.create_task(self._work(), name=f"bus.handle.{name}")

    async def wait_open(self) -> None:
        """Wait until messages come for the first time."""
        await self._opened.wait()

    async def stop(self, within_s: float) -> None:
        """Take no more, let the handler finish within the time, give the rest back to the broker."""
        self._stopping.set()
        self._arrived.set()
        if self._keeper is None or self._worker is None:
            return
        await end(self._keeper)
        channel = self._channel
        if channel is not None and self._consumer_tag is not None:
            with contextlib.suppress(*BROKEN), closing_is_an_error():
                await channel.basic_cancel(self._consumer_tag, timeout=SETTLE_S)
        await asyncio.wait([self._worker], timeout=within_s)
        await end(self._worker)
        if self._closer is not None:
            await asyncio.wait([self._closer], timeout=SETTLE_S)
        if channel is not None:
            # Closed in its turn, so that the acknowledgements before it still leave.
            await _close(channel)

    # --- receiving

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        queue = await self._declare(connection)
        channel = await connection.channel(publisher_confirms=False)
        await channel.basic_qos(prefetch_count=max(self._subscription.batch * 2, SMALLEST_PREFETCH))
        # Set before the first message can come.
        self._channel = channel

        async def on_delivery(raw: DeliveredMessage) -> None:
            await self._receive(channel, raw)

        async def on_cancel(_: object) -> None:
            # The queue was deleted. A new channel declares it again.
            self._close_soon(channel)

        channel.on_consumer_cancel_callbacks.add(on_cancel)
        consuming = await channel.basic_consume(queue, on_delivery)
        self._consumer_tag = consuming.consumer_tag
        if self._opened.is_set() and self._subscription.on_gap is not None:
            # A replica's own queue went with its connection, and is another now.
            self._subscription.on_gap()
        self._opened.set()
        return channel

    async def _receive(self, channel: AbstractChannel, raw: DeliveredMessage) -> None:
        tag = raw.delivery_tag
        assert tag is not None
        try:
            message = to_message(raw)
        except Malformed as error:
            await self._bury_unreadable(channel, raw, tag, error)
            return
        self._waiting.append(Delivery(raw, channel, tag, message))
        self._arrived.set()

    async def _bury_unreadable(
        self, channel: AbstractChannel, raw: DeliveredMessage, tag: int, error: Malformed
    ) -> None:
        log.error("not an event", subscription=self._subscription.name, error=error.detail)
        # The broker's own dead-lettering: there is no envelope to add a reason to.
        with contextlib.suppress(*BROKEN):
            await channel.basic_reject(tag, requeue=False, wait=False)
        self._counts.dead += 1

    def _close_soon(self, channel: AbstractChannel) -> None:
        # Not awaited: the one who asks may be the channel's own reader.
        self._closer = asyncio.ensure_future(_close(channel))

    # --- handling

    async def _work(self) -> None:
        while not self._stopping.is_set():
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            try:
                await self._bring_to_an_end(batch)
            except Exception:
                # Whatever it is, a fault of ours, not of the handler's, and the queue must go on
                # being read. A new channel brings the messages again.
                log.exception("the bus failed", subscription=self._subscription.name)
                self._close_soon(batch[0].channel)
                await self._pause(1)

    def _next_batch(self) -> list[Delivery]:
        """Take what is there, up to a batch; a message that is tried again comes alone."""
        while self._due:
            delivery = self._due.popleft()
            self._held.discard(delivery)
            if not delivery.is_stale:
                return [delivery]
        batch: list[Delivery] = []
        while self._waiting and len(batch) < self._subscription.batch:
            delivery = self._waiting.popleft()
            if not delivery.is_stale:
                batch.append(delivery)
        return batch

    async def _bring_to_an_end(self, batch: Sequence[Delivery]) -> None:
        pauses = 0
        while True:
            error = await self._try(batch)
            if error is None:
                self._counts.handled += len(batch)
                await self._acknowledge(batch)
                return
            outcome = outcome_of(error)
            if outcome is not Outcome.PAUSE:
                break
            pauses += 1
            self._counts.pauses += 1
            log.warning("paused", subscription=self._subscription.name, error=repr(error))
            await self._pause(pauses)
            if self._stopping.is_set() or batch[0].is_stale:
                return  # the broker has them still
        if len(batch) > 1:
            # Whatever one message did, its neighbours were rolled back with it. Halving finds it.
            middle = len(batch) // 2
            for part in (batch[:middle], batch[middle:]):
                if self._stopping.is_set():
                    return
                await self._bring_to_an_end(part)
            return
        delivery = batch[0]
        delivery.attempts += 1
        if outcome is Outcome.DONE:
            self._counts.handled += 1
            await self._acknowledge(batch)
        elif outcome is Outcome.RETRY and delivery.attempts < self._subscription.attempts:
            self._hold(delivery, error)
        else:
            await self._give_up(delivery, error)

    async def _try(self, batch: Sequence[Delivery]) -> BaseException | None:
        try:
            await self._handle([delivery.message for delivery in batch])
        except asyncio.CancelledError as error:
            if is_own_cancellation(error):
                raise
            return error  # something the handler awaited was cancelled, not we
        except Exception as error:  # noqa: BLE001 - outcome_of judges it
            return error
        return None

    def _hold(self, delivery: Delivery, error: BaseException) -> None:
        """Keep a message and try it again later; the next ones are handled meanwhile."""
        self._counts.retried += 1
        self._held.add(delivery)
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** (delivery.attempts - 1))
        log.warning(
            "will retry",
            subscription=self._subscription.name,
            type=delivery.message.type,
            error=repr(error),
        )

        def again() -> None:
            self._due.append(delivery)
            self._arrived.set()

        asyncio.get_running_loop().call_later(delay_s * random.uniform(0.9, 1.1), again)

    async def _give_up(self, delivery: Delivery, error: BaseException) -> None:
        """Put a message among the dead letters, with its reason, and only then acknowledge it."""
        failures = 0
        while not (delivery.is_stale or self._stopping.is_set()):
            try:
                await self._bury(delivery.raw, type(error).__name__, str(error), delivery.attempts)
            except Unavailable as unavailable:
                failures += 1
                log.warning("cannot dead-letter now", error=repr(unavailable))
                await self._pause(failures)
                continue
            self._counts.dead += 1
            log.error(
                "dead letter",
                subscription=self._subscription.name,
                type=delivery.message.type,
                error=repr(error),
            )
            await self._acknowledge([delivery])
            return

    async def _acknowledge(self, batch: Sequence[Delivery]) -> None:
        """Acknowledge all: by one frame, unless that would take in a message still held.

        If the channel has closed meanwhile, the broker delivers them once more.
        """
        channel, last = batch[-1].channel, batch[-1].tag
        with contextlib.suppress(*BROKEN):
            async with asyncio.timeout(SETTLE_S):
                if any(held.channel is channel and held.tag < last for held in self._held):
                    for delivery in batch:
                        await channel.basic_ack(delivery.tag, wait=False)
                else:
                    await channel.basic_ack(last, multiple=True, wait=False)

    async def _pause(self, failures: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s(failures)):
                await self._stopping.wait()


async def _close(channel: AbstractChannel) -> None:
    with contextlib.suppress(*BROKEN), closing_is_an_error():
        async with asyncio.timeout(SETTLE_S):
            await channel.close()
