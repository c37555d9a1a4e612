"""The exchanges and queues on RabbitMQ.

`iiot.events`     topic, `<type>.<tenant>`; what nobody listens to goes to `iiot.unrouted`
`iiot.telemetry`  topic, `<type>.<shard>`; what nobody listens to is returned to the publisher
`iiot.dead`       direct, by subscription, to the queue `<subscription>.dead`

A shared subscription is one quorum queue of its name, a sharded one a queue `<name>.<shard>`
each, with a single active consumer. A subscription per replica is a queue of that connection,
gone with it.
"""

import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelPreconditionFailed
from pamqp.common import FieldTable

from libs.common.bus.base import Mode, Subscription

log = structlog.get_logger(__name__)

EVENTS = "iiot.events"
TELEMETRY = "iiot.telemetry"
DEAD = "iiot.dead"
UNROUTED = "iiot.unrouted"

DELIVERY_LIMIT = 20
"""Net under our own counting: a message that kills its consumer each time ends after this many."""
NO_DELIVERY_LIMIT = 1_000_000
"""Whoever looks through the dead letters must not use them up (RabbitMQ 4 would, after 20)."""
UNROUTED_MAX_BYTES = 64 * 1024 * 1024


def dead_queue(subscription: Subscription) -> str:
    """Return the name of the queue of a subscription's dead letters."""
    return f"{subscription.name}.dead"


def queue_names(subscription: Subscription, shards: int) -> list[str]:
    """Return a subscription's queues; the empty name lets the broker choose one."""
    if subscription.mode is Mode.PER_REPLICA:
        return [""]
    if subscription.sharded:
        return [f"{subscription.name}.{shard}" for shard in range(shards)]
    return [subscription.name]


async def declare_exchanges(connection: AbstractConnection) -> None:
    """Declare what all services share; safe to repeat."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.exchange_declare(UNROUTED, exchange_type="fanout", durable=True)
        await channel.exchange_declare(
            EVENTS,
            exchange_type="topic",
            durable=True,
            arguments={"alternate-exchange": UNROUTED},
        )
        await channel.exchange_declare(TELEMETRY, exchange_type="topic", durable=True)
        await channel.exchange_declare(DEAD, exchange_type="direct", durable=True)
    finally:
        await channel.close()
    await _declare_queue(
        connection,
        UNROUTED,
        {
            "x-queue-type": "quorum",
            "x-max-length-bytes": UNROUTED_MAX_BYTES,
            "x-overflow": "drop-head",
        },
        binds=[(UNROUTED, "")],
    )


async def declare_subscription(
    connection: AbstractConnection, subscription: Subscription, queue: str, *, max_bytes: int
) -> str:
    """Declare a queue of a subscription, its dead letters and its bindings; return its name.

    A queue that exists with other arguments (a changed setting) is kept as it is, with a warning:
    what lies in it matters more.
    """
    name = subscription.name
    if subscription.mode is Mode.PER_REPLICA:
        # Overflow loses the oldest here: one stuck replica must not stop the publishers.
        arguments: FieldTable = {"x-max-length-bytes": max_bytes, "x-overflow": "drop-head"}
    else:
        arguments = {
            "x-queue-type": "quorum",
            "x-max-length-bytes": max_bytes,
            "x-overflow": "reject-publish",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-routing-key": name,
            "x-dead-letter-strategy": "at-least-once",
        }
        if subscription.sharded:
            arguments["x-single-active-consumer"] = True
    exchange, word = EVENTS, "*"
    if subscription.sharded:
        exchange = TELEMETRY
        if queue:
            word = queue.removeprefix(f"{name}.")
    binds = [(exchange, f"{type_}.{word}") for type_ in sorted(subscription.types)]
    declared = await _declare_queue(connection, queue, arguments, binds)
    # The dead letters last: a broker (3.10, at least) that is killed within about a second after
    # a quorum queue was first declared comes back without the latest, and it stays leaderless.
    await _declare_queue(
        connection,
        dead_queue(subscription),
        {
            "x-queue-type": "quorum",
            "x-max-length-bytes": max_bytes,
            "x-overflow": "reject-publish",
            "x-delivery-limit": NO_DELIVERY_LIMIT,
        },
        binds=[(DEAD, name)],
    )
    return declared


async def _declare_queue(
    connection: AbstractConnection, name: str, arguments: FieldTable, binds: list[tuple[str, str]]
) -> str:
    channel = await connection.channel(publisher_confirms=False)
    try:
        try:
            name = await _declare(channel, name, arguments)
        except ChannelPreconditionFailed as error:
            log.warning("a queue has other arguments than asked for", queue=name, error=str(error))
            channel = await connection.channel(publisher_confirms=False)
            await channel.queue_declare(name, passive=True)
        for exchange, key in binds:
            await channel.queue_bind(name, exchange, routing_key=key)
    finally:
        await channel.close()
    return name


async def _declare(channel: AbstractChannel, name: str, arguments: FieldTable) -> str:
    declared = await channel.queue_declare(
        name, durable=bool(name), exclusive=not name, auto_delete=not name, arguments=arguments
    )
    assert declared.queue is not None
    return declared.queue
