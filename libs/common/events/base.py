"""What an event is: a fact in the past tense, declared once and never edited; a new meaning is a `.v2`.

The envelope follows CloudEvents (id, source, type, time) plus the tenant and the trace. On
RabbitMQ it travels as message properties; the body is JSON (MessagePack where the class says so)
and repeats id, tenant and time, so that a stored body stands alone.
"""

from datetime import datetime
from typing import Any, ClassVar, Literal, TypeVar
from uuid import UUID, uuid4

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all events. `at` is when it happened (UTC); `tenant_id` whose it is."""

    type: ClassVar[str]
    source: ClassVar[str]
    codec: ClassVar[Literal["json", "msgpack"]] = "json"

    id: UUID = msgspec.field(default_factory=uuid4)
    tenant_id: UUID
    at: datetime


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it travels: the envelope and the encoded body.

    `shard` is set for what travels by shard (telemetry batches, which carry many tenants and so
    have none of their own); everything else is routed by type and tenant.
    """

    id: UUID
    type: str
    source: str
    time: datetime
    body: bytes
    tenant_id: UUID | None = None
    shard: int | None = None
    traceparent: str | None = None


E = TypeVar("E", bound=Event)

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode
_decoders: dict[type[Event], Any] = {}


def to_message(event: Event, *, traceparent: str | None = None) -> Message:
    """Encode an event for the bus."""
    encode = _encode_json if event.codec == "json" else _encode_msgpack
    return Message(
        id=event.id,
        type=event.type,
        source=event.source,
        time=event.at,
        tenant_id=event.tenant_id,
        body=encode(event),
        traceparent=traceparent,
    )


def from_message(event_class: type[E], message: Message) -> E:
    """Decode a message as the class it is said to be. Raises msgspec.ValidationError if it is not."""
    decoder = _decoders.get(event_class)
    if decoder is None:
        module = msgspec.json if event_class.codec == "json" else msgspec.msgpack
        decoder = _decoders[event_class] = module.Decoder(event_class)
    event: E = decoder.decode(message.body)
    return event
