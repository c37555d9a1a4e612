"""What a device puts on the wire, written down independently of the code under test."""

from services.ingest.protocols.mqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)

DEVICE = "0b6f3b0e-7c55-4f0e-9d0c-3f1a2b3c4d5e"
OTHER_DEVICE = "11111111-2222-4333-8444-555555555555"
TOKEN = b"a-token"


def topic(level: str, device: str = DEVICE) -> bytes:
    return f"v1/devices/{device}/{level}".encode()


def field(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def packet(first: int, body: bytes) -> bytes:
    """A control packet; the remaining length as the pseudo-code of section 2.2.3 has it."""
    length = len(body)
    encoded = b""
    while True:
        length, digit = divmod(length, 128)
        encoded += bytes([digit | 128 if length else digit])
        if not length:
            return bytes([first]) + encoded + body


def connect(
    client_id: str = DEVICE,
    username: str | None = DEVICE,
    password: bytes | None = TOKEN,
    *,
    keep_alive: int = 60,
    clean: bool = True,
    will: tuple[bytes, bytes] | None = None,
) -> bytes:
    flags = clean << 1 | (username is not None) << 7 | (password is not None) << 6
    body = field(client_id.encode())
    if will is not None:
        flags |= 0x04 | 1 << 3
        body += field(will[0]) + field(will[1])
    if username is not None:
        body += field(username.encode())
    if password is not None:
        body += field(password)
    head = field(b"MQTT") + bytes([4, flags]) + keep_alive.to_bytes(2, "big")
    return packet(0x10, head + body)


def publish(
    level: str = "telemetry",
    payload: bytes = b'{"temp":21.5}',
    *,
    packet_id: int = 0,
    qos: int | None = None,
    dup: bool = False,
    device: str = DEVICE,
) -> bytes:
    """A PUBLISH; QoS 1 if it has a packet id and nothing else is said."""
    if qos is None:
        qos = 1 if packet_id else 0
    body = field(topic(level, device))
    if qos:
        body += packet_id.to_bytes(2, "big")
    return packet(0x30 | dup << 3 | qos << 1, body + payload)


def puback(packet_id: int) -> bytes:
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def subscribe(packet_id: int, *filters: tuple[bytes, int]) -> bytes:
    body = b"".join(field(name) + bytes([qos]) for name, qos in filters)
    return packet(0x82, packet_id.to_bytes(2, "big") + body)


def unsubscribe(packet_id: int, *filters: bytes) -> bytes:
    return packet(0xA2, packet_id.to_bytes(2, "big") + b"".join(map(field, filters)))


PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"


def encode(message: Packet) -> bytes:
    """Any packet a device can send."""
    match message:
        case Connect(client_id, username, password, clean, keep_alive, will):
            flags = clean << 1 | (username is not None) << 7 | (password is not None) << 6
            body = field(client_id.encode())
            if will is not None:
                flags |= 0x04 | will.qos << 3 | will.retain << 5
                body += field(will.topic) + field(will.payload)
            if username is not None:
                body += field(username.encode())
            if password is not None:
                body += field(password)
            head = field(b"MQTT") + bytes([4, flags]) + keep_alive.to_bytes(2, "big")
            return packet(0x10, head + body)
        case Publish(name, payload, packet_id, qos, dup, retain):
            identifier = packet_id.to_bytes(2, "big") if qos else b""
            return packet(0x30 | dup << 3 | qos << 1 | retain, field(name) + identifier + payload)
        case Puback(packet_id):
            return packet(0x40, packet_id.to_bytes(2, "big"))
        case Pubrec(packet_id):
            return packet(0x50, packet_id.to_bytes(2, "big"))
        case Pubrel(packet_id):
            return packet(0x62, packet_id.to_bytes(2, "big"))
        case Pubcomp(packet_id):
            return packet(0x70, packet_id.to_bytes(2, "big"))
        case Subscribe(packet_id, filters):
            return subscribe(packet_id, *filters)
        case Unsubscribe(packet_id, names):
            return unsubscribe(packet_id, *names)
        case Pingreq():
            return PINGREQ
        case Disconnect():
            return DISCONNECT
    raise AssertionError(f"a device does not send {message}")
