"""What the packets of MQTT are made of: numbers, fields, texts, and the properties of MQTT 5."""

from collections.abc import Callable
from enum import Enum, Flag, auto
from typing import Any

from services.ingest.protocols.mqtt.packets import (
    LARGEST_REMAINING_LENGTH,
    Properties,
    ProtocolViolation,
    ReasonCode,
)


class Within(Flag):
    """The packets that properties stand in."""

    CONNECT = auto()
    CONNACK = auto()
    PUBLISH = auto()
    WILL = auto()
    ACKNOWLEDGEMENT = auto()
    """PUBACK, PUBREC, PUBREL and PUBCOMP."""
    SUBSCRIBE = auto()
    SUBACK = auto()
    UNSUBSCRIBE = auto()
    UNSUBACK = auto()
    DISCONNECT = auto()
    AUTH = auto()


class Form(Enum):
    """How the value of a property is written."""

    FLAG = "byte that is 0 or 1"
    SHORT = "two-byte integer"
    LONG = "four-byte integer"
    VARIABLE = "variable byte integer"
    TEXT = "UTF-8 string"
    TOPIC = "topic name"
    BINARY = "binary data"
    PAIR = "pair of UTF-8 strings"


_MESSAGE = Within.PUBLISH | Within.WILL
_ANY = ~Within(0)

# Table 2-4 of the standard: what it is called here, how it is written, and where it may stand.
PROPERTIES: dict[int, tuple[str, Form, Within]] = {
    0x01: ("payload_format", Form.FLAG, _MESSAGE),
    0x02: ("message_expiry", Form.LONG, _MESSAGE),
    0x03: ("content_type", Form.TEXT, _MESSAGE),
    0x08: ("response_topic", Form.TOPIC, _MESSAGE),
    0x09: ("correlation_data", Form.BINARY, _MESSAGE),
    0x0B: ("subscription_id", Form.VARIABLE, Within.SUBSCRIBE),
    0x11: ("session_expiry", Form.LONG, Within.CONNECT | Within.CONNACK | Within.DISCONNECT),
    0x12: ("assigned_client_id", Form.TEXT, Within.CONNACK),
    0x13: ("server_keep_alive", Form.SHORT, Within.CONNACK),
    0x15: ("authentication_method", Form.TEXT, Within.CONNECT | Within.CONNACK | Within.AUTH),
    0x16: ("authentication_data", Form.BINARY, Within.CONNECT | Within.CONNACK | Within.AUTH),
    0x17: ("request_problem_info", Form.FLAG, Within.CONNECT),
    0x18: ("will_delay", Form.LONG, Within.WILL),
    0x19: ("request_response_info", Form.FLAG, Within.CONNECT),
    0x1A: ("response_info", Form.TEXT, Within.CONNACK),
    0x1C: ("server_reference", Form.TEXT, Within.CONNACK),
    0x1F: (
        "reason_string",
        Form.TEXT,
        Within.CONNACK
        | Within.ACKNOWLEDGEMENT
        | Within.SUBACK
        | Within.UNSUBACK
        | Within.DISCONNECT
        | Within.AUTH,
    ),
    0x21: ("receive_maximum", Form.SHORT, Within.CONNECT | Within.CONNACK),
    0x22: ("topic_alias_maximum", Form.SHORT, Within.CONNECT | Within.CONNACK),
    0x23: ("topic_alias", Form.SHORT, Within.PUBLISH),
    0x24: ("maximum_qos", Form.FLAG, Within.CONNACK),
    0x25: ("retain_available", Form.FLAG, Within.CONNACK),
    0x26: ("user", Form.PAIR, _ANY),
    0x27: ("maximum_packet_size", Form.LONG, Within.CONNECT | Within.CONNACK),
    0x28: ("wildcards_available", Form.FLAG, Within.CONNACK),
    0x29: ("subscription_ids_available", Form.FLAG, Within.CONNACK),
    0x2A: ("shared_available", Form.FLAG, Within.CONNACK),
}

_NOT_ZERO = {"receive_maximum", "maximum_packet_size", "subscription_id"}


class Body:
    """The body of one packet, read from front to back without leaving it."""

    __slots__ = ("_buffer", "_stop", "position")

    def __init__(self, buffer: bytes, start: int, stop: int) -> None:
        self._buffer = buffer
        self.position = start
        self._stop = stop

    def byte(self, name: str) -> int:
        """One byte."""
        position = self.position
        if position >= self._stop:
            raise ProtocolViolation(f"the packet ends before its {name}")
        self.position = position + 1
        return self._buffer[position]

    def number(self, name: str) -> int:
        """Two bytes, the higher one first."""
        position = self.position
        if position + 2 > self._stop:
            raise ProtocolViolation(f"the packet ends before its {name}")
        self.position = position + 2
        return self._buffer[position] << 8 | self._buffer[position + 1]

    def long(self, name: str) -> int:
        """Four bytes, the highest first."""
        return self.number(name) << 16 | self.number(name)

    def variable(self, name: str) -> int:
        """One to four bytes, seven bits each, the lowest first; in its shortest form [MQTT-1.5.5-1]."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte(name)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise ProtocolViolation(f"the {name} is longer than it need be")
                return value
        raise ProtocolViolation(f"the {name} has more than four bytes")

    def field(self, name: str) -> bytes:
        """A two-byte length and that many bytes."""
        length = self.number(f"{name}'s length")
        position = self.position
        if position + length > self._stop:
            raise ProtocolViolation(f"the packet ends within its {name}")
        self.position = position + length
        return self._buffer[position : position + length]

    def text(self, name: str) -> str:
        """A field that is UTF-8 without U+0000."""
        return read_text(self.field(name), name)

    def packet_id(self, name: str) -> int:
        """Two bytes that are not both 0."""
        packet_id = self.number("packet id")
        if not packet_id:
            raise ProtocolViolation(
                f"{name} with packet id 0 [MQTT-2.3.1-1]", ReasonCode.PROTOCOL_ERROR
            )
        return packet_id

    def properties(self, within: Within) -> Properties | None:
        """A length and the properties of a packet; None if there are none.

        An unknown property makes the packet malformed; one that does not belong here, that stands
        twice or has a value it may not have is a protocol error.
        """
        length = self.variable("length of the properties")
        if not length:
            return None
        end = self.position + length
        if end > self._stop:
            raise ProtocolViolation("the packet ends within its properties")
        inner = Body(self._buffer, self.position, end)
        self.position = end
        values: dict[str, Any] = {}
        user: list[tuple[str, str]] = []
        while inner.has_more():
            kind = inner.variable("property's number")
            known = PROPERTIES.get(kind)
            if known is None:
                raise ProtocolViolation(f"there is no property 0x{kind:02x}")
            name, form, allowed = known
            if not within & allowed:
                raise ProtocolViolation(
                    f"the property {name} does not belong here", ReasonCode.PROTOCOL_ERROR
                )
            value = _READ[form](inner, name)
            if form is Form.PAIR:
                user.append(value)
                continue
            if name in values:
                raise ProtocolViolation(
                    f"the property {name} stands twice", ReasonCode.PROTOCOL_ERROR
                )
            if not value and name in _NOT_ZERO:
                raise ProtocolViolation(f"{name} is 0", ReasonCode.PROTOCOL_ERROR)
            values[name] = value
        if "authentication_data" in values and "authentication_method" not in values:
            raise ProtocolViolation(
                "authentication data without a method [MQTT-3.1.2-30]", ReasonCode.PROTOCOL_ERROR
            )
        return Properties(**values, user=tuple(user))

    def remainder(self) -> bytes:
        """All that is left."""
        position, self.position = self.position, self._stop
        return self._buffer[position : self._stop]

    def has_more(self) -> bool:
        """Whether anything is left."""
        return self.position < self._stop

    def finish(self, name: str) -> None:
        """Raise ProtocolViolation unless all is read."""
        if self.has_more():
            raise ProtocolViolation(f"{name} is longer than what it holds")


def read_text(field: bytes, name: str) -> str:
    """Return a field as text. Raises ProtocolViolation if it is not UTF-8, or holds U+0000."""
    try:
        text = field.decode()
    except UnicodeDecodeError:
        raise ProtocolViolation(f"the {name} is not UTF-8 [MQTT-1.5.3-1]") from None
    if "\0" in text:
        raise ProtocolViolation(f"the {name} holds U+0000 [MQTT-1.5.3-2]")
    return text


def check_topic(topic: bytes) -> None:
    """Raise ProtocolViolation unless it is the name of a topic."""
    if not topic:
        raise ProtocolViolation("an empty topic [MQTT-4.7.3-1]", ReasonCode.TOPIC_NAME_INVALID)
    read_text(topic, "topic")
    if b"+" in topic or b"#" in topic:
        raise ProtocolViolation(
            "a topic with a wildcard [MQTT-3.3.2-2]", ReasonCode.TOPIC_NAME_INVALID
        )


def check_filter(topic_filter: bytes) -> None:
    """Raise ProtocolViolation unless it is a filter of topics."""
    invalid = ReasonCode.TOPIC_FILTER_INVALID
    if not topic_filter:
        raise ProtocolViolation("an empty topic filter [MQTT-4.7.3-1]", invalid)
    read_text(topic_filter, "topic filter")
    levels = topic_filter.split(b"/")
    if any(b"#" in level for level in levels[:-1]) or (b"#" in levels[-1] and levels[-1] != b"#"):
        raise ProtocolViolation("'#' that is not the whole last level [MQTT-4.7.1-2]", invalid)
    if any(b"+" in level and level != b"+" for level in levels):
        raise ProtocolViolation("'+' that is not a whole level [MQTT-4.7.1-3]", invalid)


def _read_flag(body: Body, name: str) -> int:
    value = body.byte(name)
    if value > 1:
        raise ProtocolViolation(f"{name} is neither 0 nor 1", ReasonCode.PROTOCOL_ERROR)
    return value


def _read_topic(body: Body, name: str) -> bytes:
    topic = body.field(name)
    check_topic(topic)
    return topic


_READ: dict[Form, Callable[[Body, str], Any]] = {
    Form.FLAG: _read_flag,
    Form.SHORT: Body.number,
    Form.LONG: Body.long,
    Form.VARIABLE: Body.variable,
    Form.TEXT: Body.text,
    Form.TOPIC: _read_topic,
    Form.BINARY: Body.field,
    Form.PAIR: lambda body, name: (body.text(name), body.text(name)),
}


def encode_variable(number: int) -> bytes:
    """Return a number in one to four bytes, seven bits each, the lowest first.

    Raises ValueError beyond LARGEST_REMAINING_LENGTH.
    """
    if number > LARGEST_REMAINING_LENGTH:
        raise ValueError(f"a packet of {number} bytes is larger than MQTT allows")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_field(content: bytes) -> bytes:
    """Return bytes with their length before them."""
    return len(content).to_bytes(2) + content


def _encode_pairs(pairs: tuple[tuple[str, str], ...]) -> list[bytes]:
    return [encode_field(name.encode()) + encode_field(text.encode()) for name, text in pairs]


_WRITE: dict[Form, Callable[[Any], bytes]] = {
    Form.FLAG: lambda value: bytes((value,)),
    Form.SHORT: lambda value: value.to_bytes(2),
    Form.LONG: lambda value: value.to_bytes(4),
    Form.VARIABLE: encode_variable,
    Form.TEXT: lambda value: encode_field(value.encode()),
    Form.TOPIC: encode_field,
    Form.BINARY: encode_field,
}


def encode_properties(properties: Properties | None) -> bytes:
    """Return the properties with their length before them."""
    if properties is None:
        return b"\0"
    parts = []
    for kind, (name, form, _) in PROPERTIES.items():
        value = getattr(properties, name)
        if form is Form.PAIR:
            parts += [bytes((kind,)) + pair for pair in _encode_pairs(value)]
        elif value is not None:
            parts.append(bytes((kind,)) + _WRITE[form](value))
    encoded = b"".join(parts)
    return encode_variable(len(encoded)) + encoded
