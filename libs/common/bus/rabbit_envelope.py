"""A message as RabbitMQ carries it: the envelope in AMQP properties and headers, the body as it is."""

from datetime import datetime
from uuid import UUID

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldTable

from libs.common.errors import Malformed
from libs.common.events.base import Message

PERSISTENT = 2
NOBODY = "-"
"""Stands in a routing key for the tenant of a message that has none."""


def routing_key(message: Message) -> str:
    """Return `<type>.<shard>` for telemetry, `<type>.<tenant>` for everything else."""
    if message.shard is not None:
        return f"{message.type}.{message.shard}"
    return f"{message.type}.{message.tenant_id or NOBODY}"


def to_properties(message: Message, more: FieldTable | None = None) -> Basic.Properties:
    """Return the envelope as AMQP properties. `more` are further headers.

    The AMQP timestamp has whole seconds, so the exact time travels as a header, in RFC 3339.
    """
    headers: FieldTable = {"time": message.time.isoformat()}
    if message.tenant_id is not None:
        headers["tenant"] = str(message.tenant_id)
    if message.shard is not None:
        headers["shard"] = message.shard
    if message.traceparent is not None:
        headers["traceparent"] = message.traceparent
    if more:
        headers.update(more)
    return Basic.Properties(
        # An event is encoded as a map: in JSON it begins with a brace, in MessagePack never.
        content_type="application/json" if message.body[:1] == b"{" else "application/msgpack",
        delivery_mode=PERSISTENT,
        message_id=str(message.id),
        message_type=message.type,
        app_id=message.source,
        timestamp=message.time,
        headers=headers,
    )


def to_message(delivered: DeliveredMessage) -> Message:
    """Read the envelope of what the broker delivered. Raises Malformed if it is not one of ours."""
    properties = delivered.header.properties
    headers = properties.headers or {}
    tenant, shard, traceparent = (headers.get(k) for k in ("tenant", "shard", "traceparent"))
    try:
        return Message(
            id=UUID(properties.message_id),
            type=_said(properties.message_type),
            source=_said(properties.app_id),
            time=datetime.fromisoformat(str(headers["time"])),
            tenant_id=None if tenant is None else UUID(str(tenant)),
            shard=None if shard is None else int(str(shard)),
            traceparent=None if traceparent is None else str(traceparent),
            body=delivered.body,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Malformed(f"not an event's envelope: {error!r}") from error


def _said(value: str | None) -> str:
    if not value:
        raise ValueError("a property is missing")
    return value
