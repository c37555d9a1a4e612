"""What a device of MQTT 5 puts on the wire, written down independently of the code under test."""

from services.ingest.protocols.mqtt.packets import (
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)
from tests.unit.ingest.mqtt.device_packets import DEVICE, PINGREQ, TOKEN, field, packet, topic


def variable(number: int) -> bytes:
    encoded = b""
    while True:
        number, digit = divmod(number, 128)
        encoded += bytes([digit | 128 if number else digit])
        if not number:
            return encoded


def properties(found: Properties | None) -> bytes:
    """The properties of a packet, number by number as table 2-4 has them."""
    if found is None:
        return b"\0"
    body = b""
    for number, value in (
        (0x01, found.payload_format),
        (0x17, found.request_problem_info),
        (0x19, found.request_response_info),
    ):
        body += b"" if value is None else bytes([number, value])
    for number, value in (
        (0x21, found.receive_maximum),
        (0x22, found.topic_alias_maximum),
        (0x23, found.topic_alias),
    ):
        body += b"" if value is None else bytes([number]) + value.to_bytes(2, "big")
    for number, value in (
        (0x02, found.message_expiry),
        (0x11, found.session_expiry),
        (0x18, found.will_delay),
        (0x27, found.maximum_packet_size),
    ):
        body += b"" if value is None else bytes([number]) + value.to_bytes(4, "big")
    if found.subscription_id is not None:
        body += b"\x0b" + variable(found.subscription_id)
    for number, text in (
        (0x03, found.content_type),
        (0x15, found.authentication_method),
        (0x1F, found.reason_string),
    ):
        body += b"" if text is None else bytes([number]) + field(text.encode())
    for number, data in (
        (0x08, found.response_topic),
        (0x09, found.correlation_data),
        (0x16, found.authentication_data),
    ):
        body += b"" if data is None else bytes([number]) + field(data)
    for name, text in found.user:
        body += b"\x26" + field(name.encode()) + field(text.encode())
    return variable(len(body)) + body


def answer(first: int, packet_id: int, code: int, found: Properties | None) -> bytes:
    """PUBACK and the like, in their three lengths."""
    body = packet_id.to_bytes(2, "big")
    if code or found is not None:
        body += bytes([code])
    if found is not None:
        body += properties(found)
    return packet(first, body)


def encode(message: Packet) -> bytes:
    """Any packet a device can send."""
    match message:
        case Connect(client_id, username, password, clean, keep_alive, will, _, found):
            flags = clean << 1 | (username is not None) << 7 | (password is not None) << 6
            body = properties(found) + field(client_id.encode())
            if will is not None:
                flags |= 0x04 | will.qos << 3 | will.retain << 5
                body += properties(will.properties) + field(will.topic) + field(will.payload)
            if username is not None:
                body += field(username.encode())
            if password is not None:
                body += field(password)
            head = field(b"MQTT") + bytes([5, flags]) + keep_alive.to_bytes(2, "big")
            return packet(0x10, head + body)
        case Publish(name, payload, packet_id, qos, dup, retain, found):
            identifier = packet_id.to_bytes(2, "big") if qos else b""
            body = field(name) + identifier + properties(found) + payload
            return packet(0x30 | dup << 3 | qos << 1 | retain, body)
        case Puback(packet_id, code, found):
            return answer(0x40, packet_id, code, found)
        case Pubrec(packet_id, code, found):
            return answer(0x50, packet_id, code, found)
        case Pubrel(packet_id, code, found):
            return answer(0x62, packet_id, code, found)
        case Pubcomp(packet_id, code, found):
            return answer(0x70, packet_id, code, found)
        case Subscribe(packet_id, filters, found):
            body = b"".join(field(name) + bytes([qos]) for name, qos in filters)
            return packet(0x82, packet_id.to_bytes(2, "big") + properties(found) + body)
        case Unsubscribe(packet_id, names, found):
            body = b"".join(map(field, names))
            return packet(0xA2, packet_id.to_bytes(2, "big") + properties(found) + body)
        case Pingreq():
            return PINGREQ
        case Disconnect(code, found):
            if not code and found is None:
                return b"\xe0\x00"
            return packet(0xE0, bytes([code]) + (b"" if found is None else properties(found)))
        case Auth(code, found):
            return packet(0xF0, bytes([code]) + properties(found))
    raise AssertionError(f"a device does not send {message}")


def connect(
    client_id: str = DEVICE,
    username: str | None = DEVICE,
    password: bytes | None = TOKEN,
    *,
    clean: bool = True,
    keep_alive: int = 60,
    **options: object,
) -> bytes:
    """A CONNECT with these properties."""
    will = options.pop("will", None)
    found = Properties(**options) if options else None  # type: ignore[arg-type]  # by their names
    return encode(
        Connect(client_id, username, password, clean, keep_alive, will, 5, found)  # type: ignore[arg-type]  # a Will
    )


def publish(
    level: str = "telemetry",
    payload: bytes = b'{"temp":21.5}',
    *,
    packet_id: int = 0,
    qos: int | None = None,
    dup: bool = False,
    retain: bool = False,
    device: str = DEVICE,
    name: bytes | None = None,
    **options: object,
) -> bytes:
    """A PUBLISH with these properties; QoS 1 if it has a packet id and nothing else is said."""
    found = Properties(**options) if options else None  # type: ignore[arg-type]  # by their names
    where = topic(level, device) if name is None else name
    if qos is None:
        qos = 1 if packet_id else 0
    return encode(Publish(where, payload, packet_id, qos, dup, retain, found))
