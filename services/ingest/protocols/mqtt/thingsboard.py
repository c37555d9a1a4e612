"""The topics of ThingsBoard's device API, so that a device made for it moves by a change of address.

`v1/devices/me/telemetry` and `…/attributes` carry what ThingsBoard's documents say; a command is a
server-side RPC: it goes down as `{"method", "params"}` on `…/rpc/request/{number}`, and whatever JSON
the device publishes to `…/rpc/response/{number}` is its result. `v1/gateway/…` is for devices that may
speak for others.
"""

from typing import Any
from uuid import UUID

import msgspec

from services.ingest.domain.channel import Channel
from services.ingest.domain.command import numbered
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols.mqtt.topics import Aside, Topics

_ME = b"v1/devices/me/"
_REQUEST = _ME + b"rpc/request/"
_RESPONSE = _ME + b"rpc/response/"
GATEWAY = b"v1/gateway/"
_GATEWAY_SAYS = frozenset(
    GATEWAY + kind
    for kind in (
        b"connect",
        b"disconnect",
        b"telemetry",
        b"attributes",
        b"attributes/request",
        b"rpc",
    )
)
GATEWAY_RPC = GATEWAY + b"rpc"
GATEWAY_ATTRIBUTES = GATEWAY + b"attributes"
GATEWAY_ANSWERS = GATEWAY + b"attributes/response"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ThingsBoardTopics(Topics, frozen=True):
    """One connection's topics: those of ThingsBoard begin with `v1/devices/me/`, whoever it is."""

    @staticmethod
    def of_anybody() -> "ThingsBoardTopics":
        """Return the topics, the same for all devices."""
        return ThingsBoardTopics(_ME)

    @property
    def commands(self) -> bytes:
        return _REQUEST + b"1"

    @property
    def written(self) -> PayloadFormat | None:
        return PayloadFormat.THINGSBOARD

    def channel_of(self, topic: bytes) -> Channel | None:
        if topic == self.telemetry:
            return Channel.TELEMETRY
        if topic == self.attributes:
            return Channel.ATTRIBUTES
        return None if self.number_in(topic, b"rpc/response/") is None else Channel.REPLIES

    def aside_of(self, topic: bytes) -> Aside | None:
        if topic in _GATEWAY_SAYS:
            return Aside.GATEWAY
        if self.number_in(topic, b"rpc/request/") is not None:
            return Aside.RPC
        return super().aside_of(topic)

    def may_hear(self, topic_filter: bytes) -> bool:
        return topic_filter in _HEARD or super().may_hear(topic_filter)

    def command(self, command_id: UUID, payload: bytes) -> tuple[bytes, bytes]:
        command = _decode(payload)
        called = {"method": command["name"], "params": command["params"]}
        return _REQUEST + number_of(command_id), _encode(called)

    def changed_attributes(self, values: dict[str, Any], gone: list[str]) -> bytes:
        return _encode({**values, **({"deleted": gone} if gone else {})})

    def replies_to(self, command_id: UUID) -> bytes:
        return _RESPONSE + number_of(command_id)

    def message(self, channel: Channel, topic: bytes, payload: bytes) -> bytes:
        if channel is not Channel.REPLIES:
            return payload
        return answer_of(int(topic[len(_RESPONSE) :]), payload)


_HEARD = frozenset(
    {
        *(kind + any_number for kind in (_REQUEST, _RESPONSE) for any_number in (b"+", b"#")),
        *(GATEWAY_RPC, GATEWAY_ATTRIBUTES, GATEWAY_ANSWERS),
    }
)


def number_of(command_id: UUID) -> bytes:
    """Return a command's number, the same whenever it is sent: devices read it as an int of 32 bits."""
    return str(numbered(command_id)).encode()


def answer_of(number: int, payload: bytes) -> bytes:
    """Return what a device answered to the command of that number, as a reply reads here."""
    try:
        result = _decode(payload) if payload else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # No JSON, as ThingsBoard wants it; the command is done all the same.
        result = payload.decode(errors="replace")
    # The platform finds the command by its number: the connection that it went down by may be over.
    return _encode({"id": UUID(int=number & (2**128 - 1)), "status": "succeeded", "result": result})
