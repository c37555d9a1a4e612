"""MQTT as a server writes it, at levels 4 (3.1.1) and 5: a function for each packet a server sends."""

from collections.abc import Iterable

from services.ingest.protocols.mqtt.body import encode_field, encode_properties, encode_variable
from services.ingest.protocols.mqtt.packets import (
    LEVEL_4,
    ConnectCode,
    Properties,
    ReasonCode,
)

PINGRESP = b"\xd0\x00"
SUBSCRIPTION_REFUSED = 0x80
"""The code of a SUBACK of 3.1.1; MQTT 5 has many."""

PUBACK = 0x40
PUBREC = 0x50
PUBREL = 0x62
PUBCOMP = 0x70

_CONNECT_CODES = {
    ReasonCode.SUCCESS: ConnectCode.ACCEPTED,
    ReasonCode.UNSUPPORTED_PROTOCOL_VERSION: ConnectCode.UNACCEPTABLE_PROTOCOL_LEVEL,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID: ConnectCode.IDENTIFIER_REJECTED,
    ReasonCode.BAD_USER_NAME_OR_PASSWORD: ConnectCode.BAD_CREDENTIALS,
    ReasonCode.NOT_AUTHORIZED: ConnectCode.NOT_AUTHORIZED,
}


def encode_connack(
    code: ReasonCode,
    *,
    level: int = LEVEL_4,
    session_present: bool = False,
    properties: Properties | None = None,
) -> bytes:
    """Return a CONNACK. A refusal never says that a session is present [MQTT-3.2.2-4].

    What 3.1.1 has no code for is there "server unavailable".
    """
    is_present = session_present and not code
    if level == LEVEL_4:
        return bytes(
            (0x20, 2, is_present, _CONNECT_CODES.get(code, ConnectCode.SERVER_UNAVAILABLE))
        )
    body = bytes((is_present, code)) + encode_properties(properties)
    return b"\x20" + encode_variable(len(body)) + body


def encode_publish(
    topic: bytes,
    payload: bytes,
    *,
    packet_id: int = 0,
    qos: int = 0,
    dup: bool = False,
    level: int = LEVEL_4,
    properties: Properties | None = None,
) -> bytes:
    """Return a PUBLISH. Raises ValueError if `packet_id` and `qos` do not go together."""
    if bool(packet_id) != bool(qos):
        raise ValueError("a packet id goes with QoS 1 and 2, and with them alone")
    first = 0x30 | dup << 3 | qos << 1
    head = encode_field(topic) + (packet_id.to_bytes(2) if qos else b"")
    if level != LEVEL_4:
        head += encode_properties(properties)
    return b"".join((bytes((first,)), encode_variable(len(head) + len(payload)), head, payload))


def encode_pubacks(packet_ids: Iterable[int]) -> bytes:
    """Return a PUBACK for each packet id, one after the other; the same at both levels."""
    return b"".join([(0x40020000 | packet_id).to_bytes(4) for packet_id in packet_ids])


def encode_acknowledgement(
    kind: int, packet_id: int, code: ReasonCode = ReasonCode.SUCCESS
) -> bytes:
    """Return a PUBACK, PUBREC, PUBREL or PUBCOMP; of success it is the same at both levels."""
    if not code:
        return (kind << 24 | 0x020000 | packet_id).to_bytes(4)
    return bytes((kind, 3)) + packet_id.to_bytes(2) + bytes((code,))


def encode_suback(packet_id: int, codes: Iterable[int], *, level: int = LEVEL_4) -> bytes:
    """Return a SUBACK. `codes` are the granted QoS or why it is refused, in the order asked."""
    body = packet_id.to_bytes(2) + (b"" if level == LEVEL_4 else b"\0") + bytes(codes)
    return b"\x90" + encode_variable(len(body)) + body


def encode_unsuback(packet_id: int, codes: Iterable[int] = (), *, level: int = LEVEL_4) -> bytes:
    """Return an UNSUBACK; `codes`, one for each filter, stand in that of level 5 alone."""
    if level == LEVEL_4:
        return (0xB0020000 | packet_id).to_bytes(4)
    body = packet_id.to_bytes(2) + b"\0" + bytes(codes)
    return b"\xb0" + encode_variable(len(body)) + body


def encode_disconnect(code: ReasonCode, reason: str | None = None) -> bytes:
    """Return a DISCONNECT as a server of level 5 sends it; 3.1.1 has none."""
    body = bytes((code,))
    if reason is not None:
        body += encode_properties(Properties(reason_string=reason))
    return b"\xe0" + encode_variable(len(body)) + body
