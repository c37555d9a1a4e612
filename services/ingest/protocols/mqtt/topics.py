"""Which topics a device may speak and listen to, and what they are for."""

from enum import Enum
from typing import Any
from uuid import UUID

from msgspec import Struct, json

from services.ingest.domain.channel import Channel
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.domain.sparkplug import NAMESPACE, parse_topic

_CHANNELS = {channel.encode(): channel for channel in Channel}
_EDGE = f"{NAMESPACE}/".encode()
_STATE = b"STATE/"
"""Where a host says that it is there; before Sparkplug 3.0 it was outside of the namespace."""
_TO_EDGE = frozenset({b"NCMD", b"DCMD", b"STATE"})


_encode = json.Encoder().encode
LONGEST_FILTER = 1_024


class Aside(Enum):
    """What a message is about that is not simply stored."""

    EDGE_NODE = "what a Sparkplug edge node says of itself and its devices"
    GATEWAY = "what a ThingsBoard gateway says of the devices behind it"
    ATTRIBUTES = "a question for the device's own attributes"
    RPC = "a call to the server"


class Topics(Struct, frozen=True, gc=False):
    """A device's topics: all begin with `prefix`, and the rest says what they are for.

    Those of Sparkplug B are open to any device; whether it may speak for others is asked when it does.
    """

    prefix: bytes

    @staticmethod
    def own(device_id: UUID) -> "Topics":
        """Return the topics of a device: `v1/devices/{its id}/…`."""
        return Topics(f"v1/devices/{device_id}/".encode())

    @property
    def telemetry(self) -> bytes:
        """Where nearly everything goes that it publishes."""
        return self.prefix + b"telemetry"

    @property
    def commands(self) -> bytes:
        """Where it is sent commands, or one such place."""
        return self.prefix + b"commands"

    @property
    def attributes(self) -> bytes:
        """Where it is told of attributes that were set for it, and where it publishes its own."""
        return self.prefix + b"attributes"

    @property
    def written(self) -> PayloadFormat | None:
        """In which form it writes, if its topics say so."""
        return None

    def command(self, command_id: UUID, payload: bytes) -> tuple[bytes, bytes]:
        """Return the topic by which a command goes down, and the command as it is written there."""
        return self.commands, payload

    def changed_attributes(self, values: dict[str, Any], gone: list[str]) -> bytes:
        """Return how it is told of attributes that were set, or removed: null, as in a merge patch."""
        return _encode({**values, **dict.fromkeys(gone)})

    def replies_to(self, command_id: UUID) -> bytes:
        """Return where it answers a command."""
        return self.prefix + b"replies"

    def message(self, channel: Channel, topic: bytes, payload: bytes) -> bytes:
        """Return what it published to one of its topics, as the platform reads it on that channel."""
        return payload

    def channel_of(self, topic: bytes) -> Channel | None:
        """Return what a message for the topic is about; None if it is not simply stored."""
        if not topic.startswith(self.prefix):
            return None
        return _CHANNELS.get(topic[len(self.prefix) :])

    def aside_of(self, topic: bytes) -> Aside | None:
        """Return what else a message for the topic is about; None if the topic is not the device's."""
        if self.number_in(topic, b"attributes/request/") is not None:
            return Aside.ATTRIBUTES
        if topic.startswith(_EDGE) and parse_topic(topic.decode()) is not None:
            return Aside.EDGE_NODE
        return None

    def number_in(self, topic: bytes, kind: bytes) -> bytes | None:
        """Return the number of a request by its topic; None if it is no such topic."""
        start = self.prefix + kind
        number = topic[len(start) :]
        return number if topic.startswith(start) and number.isdigit() and len(number) < 20 else None

    def may_hear(self, topic_filter: bytes) -> bool:
        """Whether it may subscribe to the filter: to what is said to itself, and to nothing else."""
        own = (
            self.commands,
            self.commands + b"/#",
            self.attributes,
            self.attributes + b"/response/+",
            self.attributes + b"/response/#",
        )
        return topic_filter in own or (
            len(topic_filter) <= LONGEST_FILTER and _is_to_edge(topic_filter)
        )


def _is_to_edge(topic_filter: bytes) -> bool:
    """Whether a filter is one of Sparkplug's for an edge node. Whatever group and node it names: on
    its connection nothing comes but what is said to it.
    """
    if topic_filter.startswith(_STATE):
        return True
    levels = topic_filter.split(b"/")
    return (
        topic_filter.startswith(_EDGE)
        and len(levels) > 2
        and (levels[1] == b"STATE" or (len(levels) > 3 and levels[2] in _TO_EDGE))
    )


def state_of_host(topic_filter: bytes, at_ms: int) -> tuple[bytes, bytes] | None:
    """Return what an edge node that waits for its host is told on subscribing: that it is there.

    Whichever host it names is meant to be us: there is no other one on its connection. None if the
    filter is about something else.
    """
    levels = topic_filter.split(b"/")
    host = b"iiot" if levels[-1] in (b"+", b"#") else levels[-1]
    if topic_filter.startswith(_STATE) and len(levels) == 2:
        return _STATE + host, b"ONLINE"
    if topic_filter.startswith(_EDGE) and levels[1] == b"STATE" and len(levels) == 3:
        return _EDGE + _STATE + host, b'{"online":true,"timestamp":%d}' % at_ms
    return None


def matches(topic_filter: bytes, topic: bytes) -> bool:
    """Whether a subscription to the filter is told of what is published on the topic."""
    levels = topic.split(b"/")
    # A filter of many more levels than the topic has is not cut into all of them.
    wanted = topic_filter.split(b"/", len(levels) + 1)
    if wanted[-1] == b"#":
        wanted = wanted[:-1]
        levels = levels[: len(wanted)]
    return len(wanted) == len(levels) and all(
        own in (b"+", level) for own, level in zip(wanted, levels, strict=True)
    )


def show(topic: bytes) -> str:
    """Return a topic for the log: quoted, and never long."""
    return repr(topic[:120].decode(errors="replace"))
