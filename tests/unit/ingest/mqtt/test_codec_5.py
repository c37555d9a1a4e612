"""MQTT 5 packet by packet, with bytes written by hand from the tables of the OASIS standard."""

from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from services.ingest.protocols.mqtt.decoder import Decoder
from services.ingest.protocols.mqtt.encoder import (
    PUBACK,
    PUBREC,
    encode_acknowledgement,
    encode_connack,
    encode_disconnect,
    encode_publish,
    encode_suback,
    encode_unsuback,
)
from services.ingest.protocols.mqtt.packets import (
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
    Will,
)

# Protocol name, version 5, clean start, no keep-alive, no properties, client id "d".
CONNECT = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01d"


def decode(*pieces: bytes, aliases: int = 4) -> list[Packet]:
    """The packets of a connection that has said CONNECT."""
    decoder = Decoder(1_000, aliases)
    decoder.feed(CONNECT)
    return [packet for piece in pieces for packet in decoder.feed(piece)]


def offence(data: bytes, *, first: bytes = CONNECT) -> tuple[ReasonCode, str]:
    decoder = Decoder(1_000, 4)
    if first:
        decoder.feed(first)
    with pytest.raises(ProtocolViolation) as caught:
        decoder.feed(data)
    return caught.value.code, caught.value.reason


def test_a_connect_with_properties_and_a_will() -> None:
    data = (
        b"\x10\x4c"
        b"\x00\x04MQTT\x05\xce\x00\x0a"
        # Session expiry 10, receive maximum 20, maximum packet size 300, aliases 5, no problem info.
        b"\x14\x11\x00\x00\x00\x0a\x21\x00\x14\x27\x00\x00\x01\x2c\x22\x00\x05\x17\x00\x19\x01"
        b"\x00\x06device"
        # Will delay 7, text, a content type, a user property.
        b"\x0e\x18\x00\x00\x00\x07\x01\x01\x26\x00\x01a\x00\x01b"
        b"\x00\x04gone\x00\x03bye"
        b"\x00\x04user\x00\x03\x00\xff\x01"
    )
    assert len(data) == 2 + 0x4C
    assert Decoder(100).feed(data) == [
        Connect(
            client_id="device",
            username="user",
            password=b"\x00\xff\x01",
            keep_alive=10,
            will=Will(
                b"gone",
                b"bye",
                1,
                retain=False,
                properties=Properties(will_delay=7, payload_format=1, user=(("a", "b"),)),
            ),
            level=5,
            properties=Properties(
                session_expiry=10,
                receive_maximum=20,
                maximum_packet_size=300,
                topic_alias_maximum=5,
                request_problem_info=0,
                request_response_info=1,
            ),
        )
    ]


def test_a_password_needs_no_user_name() -> None:
    data = b"\x10\x10\x00\x04MQTT\x05\x42\x00\x00\x00\x00\x00\x00\x01p"
    assert Decoder(100).feed(data) == [Connect("", password=b"p", level=5)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x32\x08\x00\x03a/b\x00\x0a\x00", Publish(b"a/b", b"", 10, 1)),
        (b"\x30\x08\x00\x03a/b\x00hi", Publish(b"a/b", b"hi")),
        (
            b"\x34\x16\x00\x03a/b\x00\x01\x0d\x26\x00\x04unit\x00\x02Pa\x01\x01x",
            Publish(
                b"a/b", b"x", 1, 2, properties=Properties(payload_format=1, user=(("unit", "Pa"),))
            ),
        ),
        (b"\x40\x02\x12\x34", Puback(0x1234)),
        (b"\x40\x03\x12\x34\x10", Puback(0x1234, 0x10)),
        (b"\x40\x04\x12\x34\x87\x00", Puback(0x1234, 0x87)),
        (
            b"\x50\x09\x12\x34\x80\x05\x1f\x00\x02no",
            Pubrec(0x1234, 0x80, Properties(reason_string="no")),
        ),
        (b"\x62\x03\x12\x34\x92", Pubrel(0x1234, 0x92)),
        (b"\x70\x02\x12\x34", Pubcomp(0x1234)),
        (b"\x82\x07\x00\x01\x00\x00\x01#\x2d", Subscribe(1, ((b"#", 1),))),
        (
            b"\x82\x0b\x00\x01\x03\x0b\x80\x01\x00\x02a/\x02",
            Subscribe(1, ((b"a/", 2),), Properties(subscription_id=128)),
        ),
        (b"\xa2\x06\x00\x01\x00\x00\x01#", Unsubscribe(1, (b"#",))),
        (b"\xc0\x00", Pingreq()),
        (b"\xe0\x00", Disconnect()),
        (b"\xe0\x01\x04", Disconnect(4)),
        (b"\xe0\x07\x00\x05\x11\x00\x00\x00\x09", Disconnect(0, Properties(session_expiry=9))),
        (b"\xf0\x00", Auth()),
        (b"\xf0\x07\x18\x05\x15\x00\x02ab", Auth(0x18, Properties(authentication_method="ab"))),
    ],
)
def test_a_packet_written_by_hand_is_read(data: bytes, expected: Packet) -> None:
    assert decode(data) == [expected]
    assert decode(*(bytes([byte]) for byte in data)) == [expected]


MALFORMED, PROTOCOL = ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\x30\x06\x00\x01a\x02\x01\x02", PROTOCOL, "payload_format is neither 0 nor 1"),
        (b"\x30\x08\x00\x01a\x04\x01\x01\x01\x01", PROTOCOL, "payload_format stands twice"),
        (b"\x30\x05\x00\x01a\x01\x55", MALFORMED, "no property 0x55"),
        (b"\x30\x05\x00\x01a\x01\x01", MALFORMED, "ends before its payload_format"),
        (b"\x30\x05\x00\x01a\x05\x01", MALFORMED, "ends within its properties"),
        (b"\x30\x06\x00\x01a\x80\x00x", MALFORMED, "longer than it need be"),
        (b"\x30\x07\x00\x01a\x80\x80\x80\x80", MALFORMED, "more than four bytes"),
        (b"\x30\x09\x00\x01a\x05\x11\x00\x00\x00\x01", PROTOCOL, "session_expiry does not belong"),
        (b"\x30\x06\x00\x01a\x02\x0b\x01", PROTOCOL, "subscription_id does not belong"),
        (b"\x30\x07\x00\x01a\x03\x23\x00\x00", ReasonCode.TOPIC_ALIAS_INVALID, "topic alias 0"),
        (b"\x30\x07\x00\x01a\x03\x23\x00\x05", ReasonCode.TOPIC_ALIAS_INVALID, "topic alias 5"),
        (b"\x30\x06\x00\x00\x03\x23\x00\x01", PROTOCOL, "stands for nothing yet"),
        (b"\x30\x03\x00\x00\x00", PROTOCOL, "neither topic nor alias"),
        (b"\x30\x04\x00\x01#\x00", ReasonCode.TOPIC_NAME_INVALID, "a topic with a wildcard"),
        (b"\x30\x08\x00\x01a\x04\x08\x00\x01#", ReasonCode.TOPIC_NAME_INVALID, "wildcard"),
        (b"\x30\x08\x00\x01a\x04\x03\x00\x01\xff", MALFORMED, "content_type is not UTF-8"),
        (b"\x32\x06\x00\x01a\x00\x00\x00", PROTOCOL, "PUBLISH with packet id 0"),
        (b"\x36\x06\x00\x01a\x00\x01\x00", MALFORMED, "a PUBLISH with QoS 3"),
        (b"\x40\x03\x00\x01\x01", MALFORMED, "PUBACK with reason code 0x01"),
        (b"\x40\x05\x00\x01\x00\x00\x00", MALFORMED, "PUBACK is longer"),
        (b"\x62\x03\x00\x01\x80", MALFORMED, "PUBREL with reason code 0x80"),
        (b"\x82\x07\x00\x01\x00\x00\x01#\x40", MALFORMED, "a requested QoS that is none"),
        (b"\x82\x07\x00\x01\x00\x00\x01#\x30", PROTOCOL, "retain handling 3"),
        (b"\x82\x10\x00\x01\x00\x00\x0a$share/a/b\x04", PROTOCOL, "No Local"),
        (b"\x82\x09\x00\x01\x02\x0b\x00\x00\x01#\x00", PROTOCOL, "subscription_id is 0"),
        (b"\x82\x08\x00\x01\x00\x00\x02a+\x00", ReasonCode.TOPIC_FILTER_INVALID, "'+'"),
        (b"\x82\x03\x00\x01\x00", PROTOCOL, "without a topic filter"),
        (b"\xe0\x01\x01", MALFORMED, "DISCONNECT with reason code 0x01"),
        (b"\xe0\x02\x00\x05", MALFORMED, "ends within its properties"),
        (b"\xe0\x05\x00\x03\x1c\x00\x00", PROTOCOL, "server_reference does not belong"),
        (b"\xf0\x01\x01", MALFORMED, "AUTH with reason code 0x01"),
        (b"\xf1\x00", MALFORMED, "wrong flags in a packet of type 15"),
        (b"\x20\x00", PROTOCOL, "CONNACK sent by a client"),
        (b"\x30\xff\xff\xff\x7f", ReasonCode.PACKET_TOO_LARGE, "a packet of 268435460 bytes"),
        (CONNECT, PROTOCOL, "a second CONNECT"),
    ],
)
def test_a_broken_rule_is_named_with_its_code(data: bytes, code: ReasonCode, reason: str) -> None:
    found, said = offence(data)
    assert (found, reason in said) == (code, True), said


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        (b"\x03\x21\x00\x00", "receive_maximum is 0"),
        (b"\x05\x27\x00\x00\x00\x00", "maximum_packet_size is 0"),
        (b"\x03\x16\x00\x00", "authentication data without a method"),
        (b"\x02\x17\x02", "request_problem_info is neither"),
        (b"\x05\x18\x00\x00\x00\x01", "will_delay does not belong"),
    ],
)
def test_a_connect_that_asks_for_what_cannot_be(properties: bytes, reason: str) -> None:
    body = b"\x00\x04MQTT\x05\x02\x00\x00" + properties + b"\x00\x01d"
    code, said = offence(bytes([0x10, len(body)]) + body, first=b"")
    assert (code, reason in said) == (PROTOCOL, True), said


def test_an_alias_stands_for_the_topic_it_was_given_last() -> None:
    def aliased(name: bytes, alias: int, payload: bytes) -> bytes:
        body = len(name).to_bytes(2) + name + b"\x00\x07\x03\x23" + alias.to_bytes(2) + payload
        return bytes([0x32, len(body)]) + body

    packets = decode(
        aliased(b"a", 1, b"1"),
        aliased(b"", 1, b"2") * 2,
        aliased(b"b", 2, b"3"),
        aliased(b"", 1, b"4"),
        aliased(b"b", 1, b"5"),
        aliased(b"", 1, b"6"),
        aliased(b"", 2, b"7"),
        b"\x32\x07\x00\x01a\x00\x07\x008" + aliased(b"", 1, b"9"),
    )
    assert [(p.topic, p.payload) for p in packets if isinstance(p, Publish)] == [
        (b"a", b"1"),
        (b"a", b"2"),
        (b"a", b"2"),
        (b"b", b"3"),
        (b"a", b"4"),
        (b"b", b"5"),
        (b"b", b"6"),
        (b"b", b"7"),
        (b"a", b"8"),
        (b"b", b"9"),
    ]


def test_known_properties_never_reach_beyond_their_packet() -> None:
    one = b"\x32\x0b\x00\x03a/b\x00\x01\x02\x01\x01x"
    # The second ends within its properties; the bytes after it complete them by chance.
    code, reason = offence(one + b"\x32\x09\x00\x03a/b\x00\x02\x02\x01" + b"\x01x")
    assert (code, reason) == (MALFORMED, "the packet ends within its properties")


def test_what_a_server_says() -> None:
    assert encode_connack(ReasonCode.SUCCESS, level=5) == b"\x20\x03\x00\x00\x00"
    welcome = Properties(receive_maximum=20, retain_available=0, session_expiry=1)
    assert encode_connack(
        ReasonCode.SUCCESS, level=5, session_present=True, properties=welcome
    ) == (b"\x20\x0d\x01\x00\x0a\x11\x00\x00\x00\x01\x21\x00\x14\x25\x00")
    assert encode_connack(ReasonCode.NOT_AUTHORIZED, level=5, session_present=True) == (
        b"\x20\x03\x00\x87\x00"
    )
    assert encode_acknowledgement(PUBACK, 7) == b"\x40\x02\x00\x07"
    assert encode_acknowledgement(PUBREC, 7, ReasonCode.NOT_AUTHORIZED) == b"\x50\x03\x00\x07\x87"
    assert encode_suback(10, [0, 0x87], level=5) == b"\x90\x05\x00\x0a\x00\x00\x87"
    assert encode_unsuback(10, [0, 0x11], level=5) == b"\xb0\x05\x00\x0a\x00\x00\x11"
    assert encode_disconnect(ReasonCode.QUOTA_EXCEEDED) == b"\xe0\x01\x97"
    assert encode_disconnect(ReasonCode.QUOTA_EXCEEDED, "no") == b"\xe0\x07\x97\x05\x1f\x00\x02no"
    assert encode_publish(b"a", b"x", level=5, properties=Properties(content_type="t")) == (
        b"\x30\x09\x00\x01a\x04\x03\x00\x01tx"
    )


def test_what_paho_writes_is_read() -> None:
    theirs: Any = PahoProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho has no types here
    theirs.PayloadFormatIndicator = 1
    theirs.MessageExpiryInterval = 300
    theirs.TopicAlias = 3
    theirs.ResponseTopic = "v1/answers"
    theirs.CorrelationData = b"\x00\xff"
    theirs.UserProperty = [("unit", "°C"), ("quality", "good"), ("unit", "K")]
    theirs.ContentType = "application/cbor"
    body = b"\x00\x01a\x00\x01" + theirs.pack() + b"payload"
    assert decode(bytes([0x32, len(body)]) + body) == [
        Publish(
            b"a",
            b"payload",
            1,
            1,
            properties=Properties(
                payload_format=1,
                message_expiry=300,
                topic_alias=3,
                response_topic=b"v1/answers",
                correlation_data=b"\x00\xff",
                user=(("unit", "°C"), ("quality", "good"), ("unit", "K")),
                content_type="application/cbor",
            ),
        )
    ]


def test_what_a_server_writes_paho_reads() -> None:
    ours = Properties(
        session_expiry=5,
        receive_maximum=1_000,
        maximum_packet_size=262_144,
        topic_alias_maximum=16,
        retain_available=0,
        subscription_ids_available=0,
        shared_available=0,
        reason_string="so",
    )
    encoded = encode_connack(ReasonCode.SUCCESS, level=5, properties=ours)
    theirs: Any = PahoProperties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]  # paho has no types here
    _, length = theirs.unpack(encoded[4:])
    assert length == len(encoded) - 4
    assert theirs.json() == {
        "SessionExpiryInterval": 5,
        "ReceiveMaximum": 1_000,
        "MaximumPacketSize": 262_144,
        "TopicAliasMaximum": 16,
        "RetainAvailable": 0,
        "SubscriptionIdentifierAvailable": 0,
        "SharedSubscriptionAvailable": 0,
        "ReasonString": "so",
    }
