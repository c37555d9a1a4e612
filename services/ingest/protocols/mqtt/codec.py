"""MQTT 3.1.1 control packets as a server reads and writes them: bytes to packets, packets to bytes.

Reading is a `Decoder`: `feed(data)` returns the packets that became whole. Writing is a function
for each packet a server sends. Nothing here knows what a session allows; see `session`.

The bracketed names (MQTT-x.y.z-n) are the numbered statements of the OASIS standard of 29 October
2014. Another protocol level is another table of readers beside `_READERS_3_1_1`.
"""

from collections.abc import Callable, Iterable
from enum import IntEnum

from msgspec import Struct


class ProtocolViolation(Exception):
    """The peer broke a rule of the protocol; the connection must be closed [MQTT-4.8.0-1].

    `reason` names the rule. `packets` are those that lay whole before the offence in the same
    `feed`, so that what a peer did rightly does not depend on how the network cut its bytes.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.packets: list[Packet] = []


class Will(Struct, frozen=True, gc=False):
    """What a device asks to be published for it if its connection ends without a DISCONNECT."""

    topic: bytes
    payload: bytes
    qos: int = 0
    retain: bool = False


class Connect(Struct, frozen=True):
    """A device introduces itself. `keep_alive` is in seconds, 0 for none."""

    client_id: str
    username: str | None = None
    password: bytes | None = None
    clean_session: bool = True
    keep_alive: int = 0
    will: Will | None = None


class UnsupportedConnect(Struct, frozen=True, gc=False):
    """A CONNECT of a protocol level that is not read here; answered by CONNACK 0x01."""

    protocol_name: str
    protocol_level: int


class Publish(Struct, frozen=True, gc=False):
    """A message. `packet_id` is 0 exactly when `qos` is 0. `topic` is checked UTF-8."""

    topic: bytes
    payload: bytes
    packet_id: int = 0
    qos: int = 0
    dup: bool = False
    retain: bool = False


class Puback(Struct, frozen=True, gc=False):
    """The answer to a QoS 1 PUBLISH."""

    packet_id: int


class Pubrec(Struct, frozen=True, gc=False):
    """The first answer to a QoS 2 PUBLISH."""

    packet_id: int


class Pubrel(Struct, frozen=True, gc=False):
    """The answer to a PUBREC."""

    packet_id: int


class Pubcomp(Struct, frozen=True, gc=False):
    """The answer to a PUBREL."""

    packet_id: int


class Subscribe(Struct, frozen=True):
    """A wish to receive: (topic filter as checked UTF-8, requested QoS), at least one."""

    packet_id: int
    filters: tuple[tuple[bytes, int], ...]


class Unsubscribe(Struct, frozen=True):
    """A wish to receive no longer: topic filters as checked UTF-8, at least one."""

    packet_id: int
    filters: tuple[bytes, ...]


class Pingreq(Struct, frozen=True, gc=False):
    """A sign of life."""


class Disconnect(Struct, frozen=True, gc=False):
    """A polite end: the will is to be forgotten."""


Packet = (
    Connect
    | UnsupportedConnect
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Unsubscribe
    | Pingreq
    | Disconnect
)


class ConnectCode(IntEnum):
    """The return codes of a CONNACK."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_LEVEL = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


# The types of control packets, as the upper four bits of the first byte.
_CONNECT = 0x10
_PUBLISH = 0x30
_PUBLISH_QOS_1 = 0x32
_PUBACK = 0x40
_PUBREC = 0x50
_PUBREL = 0x60
_PUBCOMP = 0x70
_SUBSCRIBE = 0x80
_UNSUBSCRIBE = 0xA0
_PINGREQ = 0xC0
_DISCONNECT = 0xE0

# What a server alone sends, and what nobody does.
_NEVER_FROM_A_CLIENT = {
    0x00: "reserved packet type 0",
    0x20: "CONNACK sent by a client",
    0x90: "SUBACK sent by a client",
    0xB0: "UNSUBACK sent by a client",
    0xD0: "PINGRESP sent by a client",
    0xF0: "reserved packet type 15",
}

# The lower four bits of the first byte, where they are no flags but fixed [MQTT-2.2.2-1].
_FIXED_FLAGS = {
    _CONNECT: 0,
    _PUBACK: 0,
    _PUBREC: 0,
    _PUBREL: 2,
    _PUBCOMP: 0,
    _SUBSCRIBE: 2,
    _UNSUBSCRIBE: 2,
    _PINGREQ: 0,
    _DISCONNECT: 0,
}

LARGEST_REMAINING_LENGTH = 268_435_455


class Decoder:
    """Turns what a client sends into packets, however the bytes were cut.

    `max_packet_size` counts the whole packet in bytes, its header included; a larger one is
    refused as soon as its header is known, before its body is kept.
    """

    __slots__ = (
        "_is_connected",
        "_is_finished",
        "_max_packet_size",
        "_needed",
        "_readers",
        "_rest",
        "_topic",
        "_topic_field",
        "_violation",
    )

    def __init__(self, max_packet_size: int) -> None:
        self._max_packet_size = max_packet_size
        self._is_connected = False
        self._is_finished = False
        self._violation: str | None = None
        self._readers = _READERS_3_1_1
        # The bytes of a packet not yet whole, and how many must lie there to look again. They are
        # gathered in place: a large packet in many small pieces costs no copy for each piece.
        self._rest = bytearray()
        self._needed = 0
        # The topic last seen, with and without its length. A device hardly ever changes it, so one
        # comparison saves cutting it out and checking it. "v1" stands for "none yet": it is valid.
        self._topic = b"v1"
        self._topic_field = b"\x00\x02v1"

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet]:
        """Return the packets that are whole now, in order.

        After a DISCONNECT or an UnsupportedConnect nothing is read any more.
        Raises ProtocolViolation, and from then on always.
        """
        if self._violation is not None:
            raise ProtocolViolation(self._violation)
        if self._is_finished:
            return []
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._needed:
                return []
            buffer = bytes(rest)
            rest.clear()
        else:
            buffer = data if isinstance(data, bytes) else bytes(data)
        packets: list[Packet] = []
        try:
            self._read_packets(buffer, packets)
        except ProtocolViolation as violation:
            self._violation = violation.reason
            violation.packets = packets
            raise
        return packets

    def _read_packets(self, buffer: bytes, packets: list[Packet]) -> None:
        """Append what is whole in `buffer` to `packets`; keep what remains."""
        end = len(buffer)
        if not self._is_connected and end and buffer[0] & 0xF0 != _CONNECT:
            raise ProtocolViolation("the first packet is not a CONNECT [MQTT-3.1.0-1]")
        append = packets.append
        largest = self._max_packet_size
        topic = self._topic
        topic_field = self._topic_field
        topic_length = len(topic_field)
        position = 0
        needed = 2
        while position + 1 < end:
            first = buffer[position]
            size = buffer[position + 1]
            start = position + 2
            if size >= 0x80:
                size, start = _read_remaining_length(buffer, position + 1, end)
                if not start:
                    needed = end - position + 1
                    break
            stop = start + size
            if stop - position > largest:
                raise ProtocolViolation(
                    f"a packet of {stop - position} bytes, {largest} are allowed"
                )
            if stop > end:
                needed = stop - position
                break
            # The straight way for nearly every packet a device sends: QoS 1, the same topic again.
            if (
                first == _PUBLISH_QOS_1
                and buffer.startswith(topic_field, start)
                and (payload := start + topic_length + 2) <= stop
            ):
                packet_id = buffer[payload - 2] << 8 | buffer[payload - 1]
                if not packet_id:
                    raise ProtocolViolation("PUBLISH with packet id 0 [MQTT-2.3.1-1]")
                append(Publish(topic, buffer[payload:stop], packet_id, 1))
            else:
                packet = self._read_packet(first, buffer, start, stop)
                append(packet)
                if self._is_finished:
                    return
                topic = self._topic
                topic_field = self._topic_field
                topic_length = len(topic_field)
            position = stop
            needed = 2
        if position < end:
            self._rest += memoryview(buffer)[position:]
            self._needed = needed

    def _read_packet(self, first: int, buffer: bytes, start: int, stop: int) -> Packet:
        """Read the packet with the body `buffer[start:stop]`, of any type."""
        kind = first & 0xF0
        if kind == _PUBLISH:
            return self._read_publish(first & 0x0F, buffer, start, stop)
        if kind in _NEVER_FROM_A_CLIENT:
            raise ProtocolViolation(_NEVER_FROM_A_CLIENT[kind])
        if first & 0x0F != _FIXED_FLAGS[kind]:
            raise ProtocolViolation(f"wrong flags in a packet of type {kind >> 4} [MQTT-2.2.2-2]")
        if kind == _CONNECT:
            if self._is_connected:
                raise ProtocolViolation("a second CONNECT [MQTT-3.1.0-2]")
            self._is_connected = True
        packet = self._readers[kind](_Body(buffer, start, stop))
        if isinstance(packet, (Disconnect, UnsupportedConnect)):
            self._is_finished = True
        return packet

    def _read_publish(self, flags: int, buffer: bytes, start: int, stop: int) -> Publish:
        qos = flags >> 1 & 3
        dup = flags >= 8
        if qos == 3:
            raise ProtocolViolation("a PUBLISH with QoS 3 [MQTT-3.3.1-4]")
        if dup and not qos:
            raise ProtocolViolation("a PUBLISH with DUP and QoS 0 [MQTT-3.3.1-2]")
        body = _Body(buffer, start, stop)
        topic = body.field("topic")
        if topic != self._topic:
            _check_topic(topic)
            self._topic = topic
            self._topic_field = len(topic).to_bytes(2) + topic
        packet_id = body.packet_id("PUBLISH") if qos else 0
        return Publish(topic, body.remainder(), packet_id, qos, dup, bool(flags & 1))


def _read_remaining_length(buffer: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the length that lies at `position` and where it ends, 0 if not all of it is here."""
    length = 0
    for shift in (0, 7, 14, 21):
        if position == end:
            return 0, 0
        byte = buffer[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, position
    raise ProtocolViolation("the remaining length has more than four bytes")


class _Body:
    """The body of one packet, read from front to back without leaving it."""

    __slots__ = ("_buffer", "_position", "_stop")

    def __init__(self, buffer: bytes, start: int, stop: int) -> None:
        self._buffer = buffer
        self._position = start
        self._stop = stop

    def byte(self, name: str) -> int:
        position = self._position
        if position >= self._stop:
            raise ProtocolViolation(f"the packet ends before its {name}")
        self._position = position + 1
        return self._buffer[position]

    def number(self, name: str) -> int:
        """Two bytes, the higher one first."""
        position = self._position
        if position + 2 > self._stop:
            raise ProtocolViolation(f"the packet ends before its {name}")
        self._position = position + 2
        return self._buffer[position] << 8 | self._buffer[position + 1]

    def field(self, name: str) -> bytes:
        """A two-byte length and that many bytes."""
        length = self.number(f"{name}'s length")
        position = self._position
        if position + length > self._stop:
            raise ProtocolViolation(f"the packet ends within its {name}")
        self._position = position + length
        return self._buffer[position : position + length]

    def text(self, name: str) -> str:
        return _read_text(self.field(name), name)

    def packet_id(self, name: str) -> int:
        packet_id = self.number("packet id")
        if not packet_id:
            raise ProtocolViolation(f"{name} with packet id 0 [MQTT-2.3.1-1]")
        return packet_id

    def remainder(self) -> bytes:
        position, self._position = self._position, self._stop
        return self._buffer[position : self._stop]

    def has_more(self) -> bool:
        return self._position < self._stop

    def finish(self, name: str) -> None:
        """Raise ProtocolViolation unless all is read."""
        if self.has_more():
            raise ProtocolViolation(f"{name} is longer than what it holds")


def _read_text(field: bytes, name: str) -> str:
    try:
        text = field.decode()
    except UnicodeDecodeError:
        raise ProtocolViolation(f"the {name} is not UTF-8 [MQTT-1.5.3-1]") from None
    if "\0" in text:
        raise ProtocolViolation(f"the {name} holds U+0000 [MQTT-1.5.3-2]")
    return text


def _check_topic(topic: bytes) -> None:
    if not topic:
        raise ProtocolViolation("an empty topic [MQTT-4.7.3-1]")
    _read_text(topic, "topic")
    if b"+" in topic or b"#" in topic:
        raise ProtocolViolation("a topic with a wildcard [MQTT-3.3.2-2]")


def _check_filter(topic_filter: bytes) -> None:
    if not topic_filter:
        raise ProtocolViolation("an empty topic filter [MQTT-4.7.3-1]")
    _read_text(topic_filter, "topic filter")
    levels = topic_filter.split(b"/")
    if any(b"#" in level for level in levels[:-1]) or (b"#" in levels[-1] and levels[-1] != b"#"):
        raise ProtocolViolation("'#' that is not the whole last level [MQTT-4.7.1-2]")
    if any(b"+" in level and level != b"+" for level in levels):
        raise ProtocolViolation("'+' that is not a whole level [MQTT-4.7.1-3]")


def _read_connect(body: _Body) -> Connect | UnsupportedConnect:
    name = body.text("protocol name")
    if name not in ("MQTT", "MQIsdp"):
        raise ProtocolViolation("the protocol name is not MQTT [MQTT-3.1.2-1]")
    level = body.byte("protocol level")
    if name != "MQTT" or level != 4:
        # MQIsdp is the name MQTT 3.1 has; such a client too learns why it is refused.
        return UnsupportedConnect(name, level)
    flags = body.byte("connect flags")
    if flags & 0x01:
        raise ProtocolViolation("the reserved connect flag is set [MQTT-3.1.2-3]")
    has_will = bool(flags & 0x04)
    will_qos = flags >> 3 & 3
    if will_qos == 3:
        raise ProtocolViolation("a will with QoS 3 [MQTT-3.1.2-14]")
    if not has_will and flags & 0x38:
        raise ProtocolViolation("will QoS or will retain without a will [MQTT-3.1.2-11]")
    has_username = bool(flags & 0x80)
    has_password = bool(flags & 0x40)
    if has_password and not has_username:
        raise ProtocolViolation("a password without a user name [MQTT-3.1.2-22]")
    keep_alive = body.number("keep alive")
    client_id = body.text("client id")
    will = None
    if has_will:
        topic = body.field("will topic")
        _check_topic(topic)
        will = Will(topic, body.field("will message"), will_qos, bool(flags & 0x20))
    username = body.text("user name") if has_username else None
    password = body.field("password") if has_password else None
    body.finish("CONNECT")
    return Connect(client_id, username, password, bool(flags & 0x02), keep_alive, will)


def _read_subscribe(body: _Body) -> Subscribe:
    packet_id = body.packet_id("SUBSCRIBE")
    filters = []
    while body.has_more():
        topic_filter = body.field("topic filter")
        _check_filter(topic_filter)
        qos = body.byte("requested QoS")
        if qos > 2:
            raise ProtocolViolation("a requested QoS that is none [MQTT-3.8.3-4]")
        filters.append((topic_filter, qos))
    if not filters:
        raise ProtocolViolation("a SUBSCRIBE without a topic filter [MQTT-3.8.3-3]")
    return Subscribe(packet_id, tuple(filters))


def _read_unsubscribe(body: _Body) -> Unsubscribe:
    packet_id = body.packet_id("UNSUBSCRIBE")
    filters = []
    while body.has_more():
        topic_filter = body.field("topic filter")
        _check_filter(topic_filter)
        filters.append(topic_filter)
    if not filters:
        raise ProtocolViolation("an UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]")
    return Unsubscribe(packet_id, tuple(filters))


def _read_puback(body: _Body) -> Puback:
    packet = Puback(body.packet_id("PUBACK"))
    body.finish("PUBACK")
    return packet


def _read_pubrec(body: _Body) -> Pubrec:
    packet = Pubrec(body.packet_id("PUBREC"))
    body.finish("PUBREC")
    return packet


def _read_pubrel(body: _Body) -> Pubrel:
    packet = Pubrel(body.packet_id("PUBREL"))
    body.finish("PUBREL")
    return packet


def _read_pubcomp(body: _Body) -> Pubcomp:
    packet = Pubcomp(body.packet_id("PUBCOMP"))
    body.finish("PUBCOMP")
    return packet


def _read_pingreq(body: _Body) -> Pingreq:
    body.finish("PINGREQ")
    return Pingreq()


def _read_disconnect(body: _Body) -> Disconnect:
    body.finish("DISCONNECT")
    return Disconnect()


_READERS_3_1_1: dict[int, Callable[[_Body], Packet]] = {
    _CONNECT: _read_connect,
    _PUBACK: _read_puback,
    _PUBREC: _read_pubrec,
    _PUBREL: _read_pubrel,
    _PUBCOMP: _read_pubcomp,
    _SUBSCRIBE: _read_subscribe,
    _UNSUBSCRIBE: _read_unsubscribe,
    _PINGREQ: _read_pingreq,
    _DISCONNECT: _read_disconnect,
}

PINGRESP = b"\xd0\x00"
SUBSCRIPTION_REFUSED = 0x80


def encode_connack(code: ConnectCode, *, session_present: bool = False) -> bytes:
    """Return a CONNACK. A refusal never says that a session is present [MQTT-3.2.2-4]."""
    return bytes((0x20, 2, session_present and not code, code))


def encode_publish(
    topic: bytes,
    payload: bytes,
    *,
    packet_id: int = 0,
    qos: int = 0,
    dup: bool = False,
    retain: bool = False,
) -> bytes:
    """Return a PUBLISH. Raises ValueError if `packet_id` and `qos` do not go together."""
    if bool(packet_id) != bool(qos):
        raise ValueError("a packet id goes with QoS 1 and 2, and with them alone")
    first = _PUBLISH | dup << 3 | qos << 1 | retain
    head = len(topic).to_bytes(2) + topic + (packet_id.to_bytes(2) if qos else b"")
    return b"".join(
        (bytes((first,)), encode_remaining_length(len(head) + len(payload)), head, payload)
    )


def encode_pubacks(packet_ids: Iterable[int]) -> bytes:
    """Return a PUBACK for each packet id, one after the other."""
    return b"".join([(0x40020000 | packet_id).to_bytes(4) for packet_id in packet_ids])


def encode_suback(packet_id: int, codes: Iterable[int]) -> bytes:
    """Return a SUBACK. `codes` are the granted QoS or SUBSCRIPTION_REFUSED, in the order asked."""
    body = packet_id.to_bytes(2) + bytes(codes)
    return b"\x90" + encode_remaining_length(len(body)) + body


def encode_unsuback(packet_id: int) -> bytes:
    """Return an UNSUBACK."""
    return (0xB0020000 | packet_id).to_bytes(4)


def encode_remaining_length(length: int) -> bytes:
    """Return `length` in one to four bytes, seven bits each, the lowest first.

    Raises ValueError beyond LARGEST_REMAINING_LENGTH.
    """
    if length > LARGEST_REMAINING_LENGTH:
        raise ValueError(f"a packet of {length} bytes is larger than MQTT allows")
    encoded = bytearray()
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
