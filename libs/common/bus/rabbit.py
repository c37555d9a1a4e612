"""The cluster's bus: RabbitMQ, with quorum queues and confirms. See rabbit_topology for what lies where."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import structlog
from aiormq.abc import AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from libs.common.bus.base import Bus, Handle, Mode, Outbox, Subscription
from libs.common.bus.counts import Counts
from libs.common.bus.outbox import Relay, TableOutbox
from libs.common.bus.rabbit_consumer import QueueConsumer
from libs.common.bus.rabbit_envelope import PERSISTENT, routing_key, to_properties
from libs.common.bus.rabbit_link import Link
from libs.common.bus.rabbit_publisher import Parcel, Publisher
from libs.common.bus.rabbit_topology import (
    DEAD,
    EVENTS,
    TELEMETRY,
    declare_exchanges,
    declare_subscription,
    queue_names,
)
from libs.common.db.engine import Database
from libs.common.errors import Unavailable
from libs.common.events.base import Message
from libs.common.tasks import end

log = structlog.get_logger(__name__)

START_S = 30.0
STOP_S = 10.0
REASON_MAX = 2000


class RabbitBus(Bus):
    """One service's place on the bus.

    `shards` is how many queues a sharded subscription has; all services agree on it.
    `relays` gives, for each schema whose outbox this process empties, the database as
    `<service>_engine`. `queue_max_bytes` is where a queue is full and publishing raises
    Unavailable. After the broker was away everything goes on by itself; meanwhile `publish` and
    `check` raise Unavailable.
    """

    def __init__(
        self,
        url: str,
        *,
        service: str,
        shards: int,
        relays: Mapping[str, Database] | None = None,
        queue_max_bytes: int = 1024 * 1024 * 1024,
        publish_timeout_s: float = 10.0,
        max_in_flight: int = 256,
        start_s: float = START_S,
        stop_s: float = STOP_S,
    ) -> None:
        self._shards = shards
        self._relay_databases = dict(relays or {})
        self._queue_max_bytes = queue_max_bytes
        self._start_s = start_s
        self._stop_s = stop_s
        # Two connections: a broker short of memory blocks those that publish, and only those.
        self._out = Link(url, f"{service}.publish", declare_exchanges)
        self._in = Link(url, f"{service}.consume", declare_exchanges)
        self._publisher = Publisher(
            self._out, timeout_s=publish_timeout_s, max_in_flight=max_in_flight
        )
        self._publishing: asyncio.Task[None] | None = None
        self._subscriptions: list[tuple[Subscription, Handle]] = []
        self._consumers: list[QueueConsumer] = []
        self._outboxes: dict[str, TableOutbox] = {}
        self._relays: list[Relay] = []
        self._counts: dict[str, Counts] = {}
        self.published = 0
        """Messages confirmed by the broker since the start."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish and return once every message is confirmed. Raises Unavailable."""
        if not messages:
            return
        await self._publisher.publish([_parcel(message) for message in messages])
        self.published += len(messages)

    def subscribe(self, subscription: Subscription, handle: Handle) -> None:
        """Listen from `start` on."""
        if subscription.name in self._counts and subscription.mode is Mode.SHARED:
            raise ValueError(f"subscription {subscription.name} is declared twice")
        self._counts.setdefault(subscription.name, Counts())
        self._subscriptions.append((subscription, handle))

    def outbox(self, schema: str) -> Outbox:
        """Return the schema's outbox; emptied by this process if it was given the database to."""
        if schema not in self._outboxes:
            self._outboxes[schema] = TableOutbox(schema)
        return self._outboxes[schema]

    def counts(self) -> dict[str, Counts]:
        """Return what each subscription went through since the start."""
        return self._counts

    async def start(self) -> None:
        """Connect, declare, begin to deliver. Raises Unavailable after 30 s without a broker."""
        self._out.start()
        self._in.start()
        self._publishing = asyncio.create_task(self._publisher.keep_open(), name="bus.publisher")
        self._consumers = [
            self._consumer(subscription, handle, queue)
            for subscription, handle in self._subscriptions
            for queue in queue_names(subscription, self._shards)
        ]
        for consumer in self._consumers:
            consumer.start()
        try:
            async with asyncio.timeout(self._start_s):
                await self._publisher.wait_open()
                for consumer in self._consumers:
                    await consumer.wait_open()
        except TimeoutError:
            detail = "a queue of the event bus cannot be read"
            if not (self._out.is_up and self._in.is_up):
                detail = "no connection to the event bus"
            await self.stop()
            raise Unavailable(detail) from None
        for schema, database in self._relay_databases.items():
            self.outbox(schema)
            relay = Relay(schema, self._outboxes[schema], database, self.publish)
            relay.start()
            self._relays.append(relay)

    async def stop(self) -> None:
        """Let the handlers finish (10 s at most), then close; what is unfinished stays in its queue."""
        # Consumers first: their handlers may still publish.
        await asyncio.gather(*[consumer.stop(self._stop_s) for consumer in self._consumers])
        await asyncio.gather(*[relay.stop(self._stop_s) for relay in self._relays])
        if self._publishing is not None:
            await end(self._publishing)
        await asyncio.gather(self._in.stop(), self._out.stop())
        self._consumers, self._relays, self._publishing = [], [], None

    async def check(self) -> None:
        """Return if messages can be published and come in now."""
        if not (self._publisher.is_open and self._in.is_up):
            raise Unavailable("the event bus cannot be reached")
        if ended := [consumer.name for consumer in self._consumers if consumer.has_ended]:
            raise Unavailable(f"no longer at work on the event bus: {', '.join(ended)}")
        if not all(consumer.is_open for consumer in self._consumers):
            raise Unavailable("a queue of the event bus cannot be read")

    def _consumer(self, subscription: Subscription, handle: Handle, queue: str) -> QueueConsumer:
        async def declare(connection: AbstractConnection) -> str:
            return await declare_subscription(
                connection, subscription, queue, max_bytes=self._queue_max_bytes
            )

        return QueueConsumer(
            self._in,
            subscription,
            handle,
            self._counts[subscription.name],
            declare=declare,
            bury=partial(self._bury, subscription),
        )

    async def _bury(
        self, subscription: Subscription, raw: DeliveredMessage, kind: str, text: str, attempts: int
    ) -> None:
        """Publish a dead letter: the message as it was, with why."""
        properties = raw.header.properties
        headers = dict(properties.headers or {})
        headers["x-reason"] = kind
        headers["x-error"] = text[:REASON_MAX]
        headers["x-attempts"] = attempts
        dead = Basic.Properties(
            content_type=properties.content_type,
            delivery_mode=PERSISTENT,
            message_id=properties.message_id,
            message_type=properties.message_type,
            app_id=properties.app_id,
            timestamp=properties.timestamp,
            headers=headers,
        )
        await self._publisher.publish([Parcel(DEAD, subscription.name, dead, raw.body)])


def _parcel(message: Message) -> Parcel:
    return Parcel(
        exchange=EVENTS if message.shard is None else TELEMETRY,
        routing_key=routing_key(message),
        properties=to_properties(message),
        body=message.body,
    )
