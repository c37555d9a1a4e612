"""What a device may do at the broker that devices publish to over AMQP: this, and nothing else.

It publishes to the exchange `devices` with its own routing keys (`<device id>.telemetry`), and reads
its own queue of commands. Who is asked is ingest, by the broker, for each of these.
"""

from functools import lru_cache
from uuid import UUID

from services.ingest.domain.channel import Channel

EXCHANGE = "devices"
MOST_REMEMBERED = 50_000
"""Routing keys that need not be read anew with each message."""


def command_queue(device_id: UUID) -> str:
    """Return the name of the queue a device's commands lie in."""
    return f"commands.{device_id}"


def may_use(device_id: UUID, resource: str, name: str, permission: str) -> bool:
    """Whether a device may use an exchange or queue; it declares and binds none."""
    return (resource, name, permission) in {
        ("exchange", EXCHANGE, "write"),
        ("queue", command_queue(device_id), "read"),
    }


def may_say(device_id: UUID, exchange: str, permission: str, routing_key: str) -> bool:
    """Whether a device may publish to a topic exchange with that routing key."""
    if (exchange, permission) != (EXCHANGE, "write"):
        return False
    try:
        return read_routing_key(routing_key)[0] == device_id
    except ValueError:
        return False


@lru_cache(maxsize=MOST_REMEMBERED)
def read_routing_key(routing_key: str) -> tuple[UUID, Channel]:
    """Return whose message it is, and what it is about. Raises ValueError if it is not `<id>.<channel>`."""
    written, _, word = routing_key.partition(".")
    device_id = UUID(written)
    if str(device_id) != written:
        # One device, one spelling: the broker compares texts.
        raise ValueError(f"not a device's id as it is written here: {written[:64]!r}")
    return device_id, Channel(word)
