"""MQTT as a server reads it, at levels 4 (3.1.1) and 5: bytes to packets.

The level is that of the CONNECT. Nothing here knows what a session allows; see `session`.
"""

from collections.abc import Callable

from services.ingest.protocols.mqtt.body import Body, Within, check_filter, check_topic
from services.ingest.protocols.mqtt.packets import (
    LEVEL_4,
    LEVEL_5,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Properties,
    ProtocolViolation,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Subscribe,
    Unsubscribe,
    UnsupportedConnect,
    Will,
)

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
_AUTH = 0xF0

# What a server alone sends, and what nobody does (type 15 is AUTH at level 5).
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
    _AUTH: 0,
}


class Decoder:
    """Turns what a client sends into packets, however the bytes were cut.

    `max_packet_size` counts the whole packet in bytes, its header included; a larger one is
    refused as soon as its header is known, before its body is kept. Of the CONNECT, which anybody
    may send, no more than `max_connect_size` are taken. A device of MQTT 5 may use
    topic aliases from 1 to `topic_aliases`.
    """

    __slots__ = (
        "_aliases",
        "_is_connected",
        "_is_finished",
        "_largest",
        "_max_packet_size",
        "_needed",
        "_properties",
        "_properties_field",
        "_readers",
        "_rest",
        "_topic",
        "_topic_aliases",
        "_topic_field",
        "_violation",
        "level",
    )

    def __init__(
        self, max_packet_size: int, topic_aliases: int = 0, max_connect_size: int | None = None
    ) -> None:
        self.level = LEVEL_4
        """The protocol level, from the CONNECT on."""
        self._max_packet_size = max_packet_size
        self._largest = min(max_packet_size, max_connect_size or max_packet_size)
        self._topic_aliases = topic_aliases
        self._is_connected = False
        self._is_finished = False
        self._violation: ProtocolViolation | None = None
        self._readers = _READERS_LEVEL_4
        # The bytes of a packet not yet whole, and how many must lie there to look again. They are
        # gathered in place: a large packet in many small pieces costs no copy for each piece.
        self._rest = bytearray()
        self._needed = 0
        # How the last PUBLISH began, with its length, and what that says. A device hardly ever
        # changes it, so one comparison saves cutting it out and checking it. "v1" stands for "none
        # yet": it is valid. What an alias stands for changes only by another PUBLISH.
        self._topic = b"v1"
        self._topic_field = b"\x00\x02v1"
        self._properties: Properties | None = None
        self._properties_field = b""
        self._aliases: dict[int, bytes] | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet]:
        """Return the packets that are whole now, in order.

        After a DISCONNECT or an UnsupportedConnect nothing is read any more.
        Raises ProtocolViolation, and from then on always.
        """
        if self._violation is not None:
            raise ProtocolViolation(self._violation.reason, self._violation.code)
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
            self._violation = ProtocolViolation(violation.reason, violation.code)
            violation.packets = packets
            raise
        return packets

    def _read_packets(self, buffer: bytes, packets: list[Packet]) -> None:
        """Append what is whole in `buffer` to `packets`; keep what remains."""
        end = len(buffer)
        if not self._is_connected and end and buffer[0] & 0xF0 != _CONNECT:
            raise ProtocolViolation(
                "the first packet is not a CONNECT [MQTT-3.1.0-1]", ReasonCode.PROTOCOL_ERROR
            )
        append = packets.append
        largest = self._largest
        topic = self._topic
        topic_field = self._topic_field
        topic_length = len(topic_field)
        properties_field = self._properties_field
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
                    f"a packet of {stop - position} bytes, {largest} are allowed",
                    ReasonCode.PACKET_TOO_LARGE,
                )
            if stop > end:
                needed = stop - position
                break
            # The straight way for nearly every packet a device sends: QoS 1, and the same topic and
            # properties again. At level 4 the properties have no bytes, at level 5 one at least.
            if (
                first == _PUBLISH_QOS_1
                and buffer.startswith(topic_field, start)
                and (payload := start + topic_length + 2) <= stop
                and (
                    not properties_field
                    or (
                        buffer.startswith(properties_field, payload)
                        and payload + len(properties_field) <= stop
                    )
                )
            ):
                packet_id = buffer[payload - 2] << 8 | buffer[payload - 1]
                if not packet_id:
                    raise ProtocolViolation(
                        "PUBLISH with packet id 0 [MQTT-2.3.1-1]", ReasonCode.PROTOCOL_ERROR
                    )
                if properties_field:
                    body = buffer[payload + len(properties_field) : stop]
                    append(Publish(topic, body, packet_id, 1, False, False, self._properties))
                else:
                    append(Publish(topic, buffer[payload:stop], packet_id, 1))
            else:
                packet = self._read_packet(first, buffer, start, stop)
                append(packet)
                if self._is_finished:
                    return
                largest = self._largest
                topic = self._topic
                topic_field = self._topic_field
                topic_length = len(topic_field)
                properties_field = self._properties_field
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
        reader = self._read_connect if kind == _CONNECT else self._readers.get(kind)
        if reader is None:
            raise ProtocolViolation(_NEVER_FROM_A_CLIENT[kind], ReasonCode.PROTOCOL_ERROR)
        if first & 0x0F != _FIXED_FLAGS[kind]:
            raise ProtocolViolation(f"wrong flags in a packet of type {kind >> 4} [MQTT-2.2.2-2]")
        packet = reader(Body(buffer, start, stop))
        if isinstance(packet, Disconnect):
            self._is_finished = True
        return packet

    def _read_connect(self, body: Body) -> Connect | UnsupportedConnect:
        if self._is_connected:
            raise ProtocolViolation("a second CONNECT [MQTT-3.1.0-2]", ReasonCode.PROTOCOL_ERROR)
        self._is_connected = True
        self._largest = self._max_packet_size
        name = body.text("protocol name")
        if name not in ("MQTT", "MQIsdp"):
            raise ProtocolViolation(
                "the protocol name is not MQTT [MQTT-3.1.2-1]",
                ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
            )
        level = body.byte("protocol level")
        if name != "MQTT" or level not in (LEVEL_4, LEVEL_5):
            # MQIsdp is the name MQTT 3.1 has; such a client too learns why it is refused.
            self._is_finished = True
            return UnsupportedConnect(name, level)
        self.level = level
        if level == LEVEL_5:
            self._readers = _READERS_LEVEL_5
            self._properties_field = b"\0"
        return _read_connect(body, level)

    def _read_publish(self, flags: int, buffer: bytes, start: int, stop: int) -> Publish:
        qos = flags >> 1 & 3
        dup = flags >= 8
        if qos == 3:
            raise ProtocolViolation("a PUBLISH with QoS 3 [MQTT-3.3.1-4]")
        if dup and not qos:
            raise ProtocolViolation("a PUBLISH with DUP and QoS 0 [MQTT-3.3.1-2]")
        body = Body(buffer, start, stop)
        written = body.field("topic")
        topic = written
        packet_id = body.packet_id("PUBLISH") if qos else 0
        if self.level == LEVEL_4:
            if topic != self._topic:
                check_topic(topic)
        else:
            begins = body.position
            self._properties = body.properties(Within.PUBLISH)
            self._properties_field = buffer[begins : body.position]
            topic = self._resolve(written)
        self._topic = topic
        self._topic_field = len(written).to_bytes(2) + written
        return Publish(
            topic, body.remainder(), packet_id, qos, dup, bool(flags & 1), self._properties
        )

    def _resolve(self, written: bytes) -> bytes:
        """Return the topic of a PUBLISH of level 5, whose alias may stand for it or be given to it."""
        if written:
            check_topic(written)
        alias = None if self._properties is None else self._properties.topic_alias
        if alias is None:
            if not written:
                raise ProtocolViolation(
                    "a PUBLISH with neither topic nor alias", ReasonCode.PROTOCOL_ERROR
                )
            return written
        if not 1 <= alias <= self._topic_aliases:
            raise ProtocolViolation(
                f"topic alias {alias}, where 1 to {self._topic_aliases} may be [MQTT-3.3.2-9]",
                ReasonCode.TOPIC_ALIAS_INVALID,
            )
        if self._aliases is None:
            self._aliases = {}
        if written:
            self._aliases[alias] = written
            return written
        known = self._aliases.get(alias)
        if known is None:
            raise ProtocolViolation(
                f"topic alias {alias} stands for nothing yet", ReasonCode.PROTOCOL_ERROR
            )
        return known


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


def _read_connect(body: Body, level: int) -> Connect:
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
    if has_password and not has_username and level == LEVEL_4:
        raise ProtocolViolation("a password without a user name [MQTT-3.1.2-22]")
    keep_alive = body.number("keep alive")
    properties = body.properties(Within.CONNECT) if level == LEVEL_5 else None
    client_id = body.text("client id")
    will = None
    if has_will:
        will_properties = body.properties(Within.WILL) if level == LEVEL_5 else None
        topic = body.field("will topic")
        check_topic(topic)
        will = Will(
            topic, body.field("will message"), will_qos, bool(flags & 0x20), will_properties
        )
    username = body.text("user name") if has_username else None
    password = body.field("password") if has_password else None
    body.finish("CONNECT")
    clean = bool(flags & 0x02)
    return Connect(client_id, username, password, clean, keep_alive, will, level, properties)


def _read_requests(body: Body, highest: int) -> tuple[tuple[bytes, int], ...]:
    """Read filters and the QoS asked for; `highest` is the greatest byte that options may be."""
    filters = []
    while body.has_more():
        topic_filter = body.field("topic filter")
        check_filter(topic_filter)
        options = body.byte("requested QoS")
        if options & 3 == 3 or options > highest:
            raise ProtocolViolation("a requested QoS that is none [MQTT-3.8.3-4]")
        if options & 0x30 == 0x30:
            raise ProtocolViolation("retain handling 3", ReasonCode.PROTOCOL_ERROR)
        if options & 4 and topic_filter.startswith(b"$share/"):
            raise ProtocolViolation(
                "No Local on a shared subscription [MQTT-3.8.3-4]", ReasonCode.PROTOCOL_ERROR
            )
        filters.append((topic_filter, options & 3))
    if not filters:
        raise ProtocolViolation(
            "a SUBSCRIBE without a topic filter [MQTT-3.8.3-3]", ReasonCode.PROTOCOL_ERROR
        )
    return tuple(filters)


def _read_subscribe_4(body: Body) -> Subscribe:
    packet_id = body.packet_id("SUBSCRIBE")
    return Subscribe(packet_id, _read_requests(body, 0x02))


def _read_subscribe_5(body: Body) -> Subscribe:
    packet_id = body.packet_id("SUBSCRIBE")
    properties = body.properties(Within.SUBSCRIBE)
    return Subscribe(packet_id, _read_requests(body, 0x3F), properties)


def _read_filters(body: Body) -> tuple[bytes, ...]:
    filters = []
    while body.has_more():
        topic_filter = body.field("topic filter")
        check_filter(topic_filter)
        filters.append(topic_filter)
    if not filters:
        raise ProtocolViolation(
            "an UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]", ReasonCode.PROTOCOL_ERROR
        )
    return tuple(filters)


def _read_unsubscribe_4(body: Body) -> Unsubscribe:
    packet_id = body.packet_id("UNSUBSCRIBE")
    return Unsubscribe(packet_id, _read_filters(body))


def _read_unsubscribe_5(body: Body) -> Unsubscribe:
    packet_id = body.packet_id("UNSUBSCRIBE")
    properties = body.properties(Within.UNSUBSCRIBE)
    return Unsubscribe(packet_id, _read_filters(body), properties)


_Acknowledgement = type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp]

# The reason codes that each acknowledgement may have.
_TAKEN = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_RELEASED = frozenset({0x00, 0x92})
_LEFT = frozenset({0x00, 0x04, *range(0x80, 0x84), 0x90, *range(0x93, 0x9A)})
_STEPS = frozenset({0x00, 0x18, 0x19})


def _acknowledgement_4(kind: _Acknowledgement) -> Callable[[Body], Packet]:
    name = kind.__name__.upper()

    def read(body: Body) -> Packet:
        packet = kind(body.packet_id(name))
        body.finish(name)
        return packet

    return read


def _acknowledgement_5(kind: _Acknowledgement, codes: frozenset[int]) -> Callable[[Body], Packet]:
    name = kind.__name__.upper()

    def read(body: Body) -> Packet:
        packet_id = body.packet_id(name)
        if not body.has_more():
            return kind(packet_id)
        code = _read_code(body, name, codes)
        properties = body.properties(Within.ACKNOWLEDGEMENT) if body.has_more() else None
        body.finish(name)
        return kind(packet_id, code, properties)

    return read


def _read_code(body: Body, name: str, codes: frozenset[int]) -> int:
    code = body.byte("reason code")
    if code not in codes:
        raise ProtocolViolation(f"{name} with reason code 0x{code:02x}")
    return code


def _read_pingreq(body: Body) -> Pingreq:
    body.finish("PINGREQ")
    return Pingreq()


def _read_disconnect_4(body: Body) -> Disconnect:
    body.finish("DISCONNECT")
    return Disconnect()


def _read_disconnect_5(body: Body) -> Disconnect:
    if not body.has_more():
        return Disconnect()
    code = _read_code(body, "DISCONNECT", _LEFT)
    properties = body.properties(Within.DISCONNECT) if body.has_more() else None
    body.finish("DISCONNECT")
    return Disconnect(code, properties)


def _read_auth(body: Body) -> Auth:
    if not body.has_more():
        return Auth()
    code = _read_code(body, "AUTH", _STEPS)
    properties = body.properties(Within.AUTH) if body.has_more() else None
    body.finish("AUTH")
    return Auth(code, properties)


_READERS_LEVEL_4: dict[int, Callable[[Body], Packet]] = {
    _PUBACK: _acknowledgement_4(Puback),
    _PUBREC: _acknowledgement_4(Pubrec),
    _PUBREL: _acknowledgement_4(Pubrel),
    _PUBCOMP: _acknowledgement_4(Pubcomp),
    _SUBSCRIBE: _read_subscribe_4,
    _UNSUBSCRIBE: _read_unsubscribe_4,
    _PINGREQ: _read_pingreq,
    _DISCONNECT: _read_disconnect_4,
}

_READERS_LEVEL_5: dict[int, Callable[[Body], Packet]] = {
    _PUBACK: _acknowledgement_5(Puback, _TAKEN),
    _PUBREC: _acknowledgement_5(Pubrec, _TAKEN),
    _PUBREL: _acknowledgement_5(Pubrel, _RELEASED),
    _PUBCOMP: _acknowledgement_5(Pubcomp, _RELEASED),
    _SUBSCRIBE: _read_subscribe_5,
    _UNSUBSCRIBE: _read_unsubscribe_5,
    _PINGREQ: _read_pingreq,
    _DISCONNECT: _read_disconnect_5,
    _AUTH: _read_auth,
}
