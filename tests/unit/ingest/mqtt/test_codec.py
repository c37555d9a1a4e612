"""Packet by packet, with bytes written by hand from the tables of the OASIS standard (3.1.1)."""

import pytest

from services.ingest.protocols.mqtt.body import encode_variable
from services.ingest.protocols.mqtt.decoder import Decoder
from services.ingest.protocols.mqtt.encoder import (
    PINGRESP,
    SUBSCRIPTION_REFUSED,
    encode_connack,
    encode_pubacks,
    encode_publish,
    encode_suback,
    encode_unsuback,
)
from services.ingest.protocols.mqtt.packets import (
    Connect,
    Disconnect,
    Packet,
    Pingreq,
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

# Protocol name, level 4, clean session, no keep-alive, client id "d".
CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01d"


def decode(*pieces: bytes, max_packet_size: int = 1_000) -> list[Packet]:
    """The packets of a connection that has said CONNECT."""
    decoder = Decoder(max_packet_size)
    decoder.feed(CONNECT)
    return [packet for piece in pieces for packet in decoder.feed(piece)]


def broken_rule(data: bytes, *, first: bytes = CONNECT, max_packet_size: int = 1_000) -> str:
    decoder = Decoder(max_packet_size)
    if first:
        decoder.feed(first)
    with pytest.raises(ProtocolViolation) as caught:
        decoder.feed(data)
    return caught.value.reason


def test_the_connect_of_the_standard_with_every_flag() -> None:
    # Figure 3.6: user name, password, will QoS 1, no will retain, will, clean session; keep-alive 10.
    data = (
        b"\x10\x28"
        b"\x00\x04MQTT\x04\xce\x00\x0a"
        b"\x00\x06device\x00\x04gone\x00\x03bye\x00\x04user\x00\x03\x00\xff\x01"
    )
    assert Decoder(100).feed(data) == [
        Connect(
            client_id="device",
            username="user",
            password=b"\x00\xff\x01",
            clean_session=True,
            keep_alive=10,
            will=Will(b"gone", b"bye", 1, retain=False),
        )
    ]


def test_the_shortest_connect() -> None:
    data = b"\x10\x0c\x00\x04MQTT\x04\x00\xff\xff\x00\x00"
    assert Decoder(100).feed(data) == [Connect("", clean_session=False, keep_alive=65_535)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Figure 3.11: topic a/b, packet id 10, QoS 1, no retain.
        (b"\x32\x07\x00\x03a/b\x00\x0a", Publish(b"a/b", b"", 10, 1)),
        (b"\x30\x05\x00\x03a/b", Publish(b"a/b", b"")),
        (b"\x31\x07\x00\x03a/bhi", Publish(b"a/b", b"hi", retain=True)),
        (b"\x3a\x08\x00\x03a/b\xff\xffx", Publish(b"a/b", b"x", 65_535, 1, dup=True)),
        (b"\x34\x08\x00\x03a/b\x00\x01x", Publish(b"a/b", b"x", 1, 2)),
        (b"\x40\x02\x12\x34", Puback(0x1234)),
        (b"\x50\x02\x12\x34", Pubrec(0x1234)),
        (b"\x62\x02\x12\x34", Pubrel(0x1234)),
        (b"\x70\x02\x12\x34", Pubcomp(0x1234)),
        # Figure 3.23: a/b at QoS 1 and c/d at QoS 2.
        (
            b"\x82\x0e\x00\x0a\x00\x03a/b\x01\x00\x03c/d\x02",
            Subscribe(10, ((b"a/b", 1), (b"c/d", 2))),
        ),
        (b"\x82\x06\x00\x01\x00\x01#\x00", Subscribe(1, ((b"#", 0),))),
        (b"\x82\x0a\x00\x01\x00\x05+/a/#\x00", Subscribe(1, ((b"+/a/#", 0),))),
        # Figure 3.30.
        (b"\xa2\x0c\x00\x0a\x00\x03a/b\x00\x03c/d", Unsubscribe(10, (b"a/b", b"c/d"))),
        (b"\xc0\x00", Pingreq()),
        (b"\xe0\x00", Disconnect()),
        # 3.1.1 does not ask for the shortest form of a length.
        (b"\xc0\x80\x00", Pingreq()),
        # 1.5.3: U+FEFF is a letter like others; "A" and U+2A6D4 are the standard's example.
        (b"\x30\x05\x00\x03\xef\xbb\xbf", Publish(b"\xef\xbb\xbf", b"")),
        (b"\x30\x07\x00\x05A\xf0\xaa\x9b\x94", Publish("A\U0002a6d4".encode(), b"")),
    ],
)
def test_a_packet_written_by_hand_is_read(data: bytes, expected: Packet) -> None:
    assert decode(data) == [expected]
    assert decode(*(bytes([byte]) for byte in data)) == [expected]
    assert decode(data + b"\xc0") == [expected]


def test_a_known_topic_is_read_again_and_a_new_one_is_too() -> None:
    one = b"\x32\x09\x00\x03a/b\x00\x01hi"
    longer = b"\x32\x09\x00\x04a/bc\x00\x02h"
    shorter = b"\x32\x09\x00\x02a/\x00\x03hiy"
    assert decode(one + one + longer + longer + shorter + one) == [
        Publish(b"a/b", b"hi", 1, 1),
        Publish(b"a/b", b"hi", 1, 1),
        Publish(b"a/bc", b"h", 2, 1),
        Publish(b"a/bc", b"h", 2, 1),
        Publish(b"a/", b"hiy", 3, 1),
        Publish(b"a/b", b"hi", 1, 1),
    ]


def test_a_known_topic_never_reaches_beyond_its_packet() -> None:
    # The second packet ends inside its topic; the bytes after it complete the topic by chance.
    one = b"\x32\x09\x00\x03a/b\x00\x01hi"
    assert broken_rule(one + b"\x32\x04\x00\x03a/" + b"b\x00\x01hi") == (
        "the packet ends within its topic"
    )
    assert broken_rule(one + b"\x32\x06\x00\x03a/b\x00" + b"\x01hi") == (
        "the packet ends before its packet id"
    )


@pytest.mark.parametrize(
    ("length", "encoded"),
    [  # Table 2.4
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
        (268_435_455, b"\xff\xff\xff\x7f"),
    ],
)
def test_the_remaining_length_takes_one_to_four_bytes(length: int, encoded: bytes) -> None:
    assert encode_variable(length) == encoded


@pytest.mark.parametrize("length", [127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_a_publish_of_every_size_of_header_is_read(length: int) -> None:
    payload = b"x" * (length - 3)
    data = b"\x30" + encode_variable(length) + b"\x00\x01t" + payload
    assert decode(data, max_packet_size=3_000_000) == [Publish(b"t", payload)]
    pieces = (data[:2], data[2:3], data[3:4], data[4:100], data[100:])
    assert decode(*pieces, max_packet_size=3_000_000) == [Publish(b"t", payload)]


def test_nothing_larger_than_mqtt_allows_is_written() -> None:
    with pytest.raises(ValueError, match="larger than MQTT allows"):
        encode_variable(268_435_456)


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\xc0\x00", "the first packet is not a CONNECT [MQTT-3.1.0-1]"),
        (b"\x32", "the first packet is not a CONNECT [MQTT-3.1.0-1]"),
        (b"GET / HTTP/1.1\r\n", "the first packet is not a CONNECT [MQTT-3.1.0-1]"),
        (b"\x11\x00", "wrong flags in a packet of type 1 [MQTT-2.2.2-2]"),
        (b"\x10\x00", "the packet ends before its protocol name's length"),
        (b"\x10\x06\x00\x04HTTP", "the protocol name is not MQTT [MQTT-3.1.2-1]"),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x03\x00\x00\x00\x01d",
            "the reserved connect flag is set [MQTT-3.1.2-3]",
        ),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x08\x00\x00\x00\x01d",
            "will QoS or will retain without a will [MQTT-3.1.2-11]",
        ),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x20\x00\x00\x00\x01d",
            "will QoS or will retain without a will [MQTT-3.1.2-11]",
        ),
        (
            b"\x10\x13\x00\x04MQTT\x04\x1c\x00\x00\x00\x01d\x00\x01w\x00\x01w",
            "a will with QoS 3 [MQTT-3.1.2-14]",
        ),
        (
            b"\x10\x13\x00\x04MQTT\x04\x04\x00\x00\x00\x01d\x00\x01#\x00\x01w",
            "a topic with a wildcard [MQTT-3.3.2-2]",
        ),
        (
            b"\x10\x12\x00\x04MQTT\x04\x04\x00\x00\x00\x01d\x00\x00\x00\x01w",
            "an empty topic [MQTT-4.7.3-1]",
        ),
        (
            b"\x10\x10\x00\x04MQTT\x04\x40\x00\x00\x00\x01d\x00\x01p",
            "a password without a user name [MQTT-3.1.2-22]",
        ),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x80\x00\x00\x00\x01d",
            "the packet ends before its user name's length",
        ),
        (
            b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x00\x00\x01dd",
            "CONNECT is longer than what it holds",
        ),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01\xff",
            "the client id is not UTF-8 [MQTT-1.5.3-1]",
        ),
        (
            b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01\x00",
            "the client id holds U+0000 [MQTT-1.5.3-2]",
        ),
    ],
)
def test_a_wrong_beginning_names_the_rule(data: bytes, rule: str) -> None:
    assert broken_rule(data, first=b"") == rule


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (CONNECT, "a second CONNECT [MQTT-3.1.0-2]"),
        (b"\x00\x00", "reserved packet type 0"),
        (b"\x20\x02\x00\x00", "CONNACK sent by a client"),
        (b"\x90\x03\x00\x01\x00", "SUBACK sent by a client"),
        (b"\xb0\x02\x00\x01", "UNSUBACK sent by a client"),
        (b"\xd0\x00", "PINGRESP sent by a client"),
        (b"\xf0\x00", "reserved packet type 15"),
        (b"\x41\x02\x00\x01", "wrong flags in a packet of type 4 [MQTT-2.2.2-2]"),
        (b"\x60\x02\x00\x01", "wrong flags in a packet of type 6 [MQTT-2.2.2-2]"),
        (b"\x80\x06\x00\x01\x00\x01a\x00", "wrong flags in a packet of type 8 [MQTT-2.2.2-2]"),
        (b"\xa0\x05\x00\x01\x00\x01a", "wrong flags in a packet of type 10 [MQTT-2.2.2-2]"),
        (b"\xc2\x00", "wrong flags in a packet of type 12 [MQTT-2.2.2-2]"),
        (b"\xe1\x00", "wrong flags in a packet of type 14 [MQTT-2.2.2-2]"),
        (b"\x36\x05\x00\x01a\x00\x01", "a PUBLISH with QoS 3 [MQTT-3.3.1-4]"),
        (b"\x38\x03\x00\x01a", "a PUBLISH with DUP and QoS 0 [MQTT-3.3.1-2]"),
        (b"\x32\x05\x00\x01a\x00\x00", "PUBLISH with packet id 0 [MQTT-2.3.1-1]"),
        (b"\x34\x05\x00\x01a\x00\x00", "PUBLISH with packet id 0 [MQTT-2.3.1-1]"),
        (b"\x32\x04\x00\x01a\x00", "the packet ends before its packet id"),
        (b"\x30\x02\x00\x01", "the packet ends within its topic"),
        (b"\x30\x01\x00", "the packet ends before its topic's length"),
        (b"\x30\x02\x00\x00", "an empty topic [MQTT-4.7.3-1]"),
        (b"\x30\x05\x00\x03a/#", "a topic with a wildcard [MQTT-3.3.2-2]"),
        (b"\x30\x05\x00\x03a/+", "a topic with a wildcard [MQTT-3.3.2-2]"),
        (b"\x30\x03\x00\x01\xff", "the topic is not UTF-8 [MQTT-1.5.3-1]"),
        # Surrogates (U+D800) are not characters [MQTT-1.5.3-1], nor is an overlong slash.
        (b"\x30\x05\x00\x03\xed\xa0\x80", "the topic is not UTF-8 [MQTT-1.5.3-1]"),
        (b"\x30\x04\x00\x02\xc0\xaf", "the topic is not UTF-8 [MQTT-1.5.3-1]"),
        (b"\x30\x03\x00\x01\x00", "the topic holds U+0000 [MQTT-1.5.3-2]"),
        (b"\x40\x02\x00\x00", "PUBACK with packet id 0 [MQTT-2.3.1-1]"),
        (b"\x40\x01\x00", "the packet ends before its packet id"),
        (b"\x40\x03\x00\x01\x00", "PUBACK is longer than what it holds"),
        (b"\x50\x03\x00\x01\x00", "PUBREC is longer than what it holds"),
        (b"\x62\x02\x00\x00", "PUBREL with packet id 0 [MQTT-2.3.1-1]"),
        (b"\x70\x00", "the packet ends before its packet id"),
        (b"\x82\x02\x00\x01", "a SUBSCRIBE without a topic filter [MQTT-3.8.3-3]"),
        (b"\x82\x06\x00\x00\x00\x01a\x00", "SUBSCRIBE with packet id 0 [MQTT-2.3.1-1]"),
        (b"\x82\x05\x00\x01\x00\x01a", "the packet ends before its requested QoS"),
        (b"\x82\x06\x00\x01\x00\x01a\x03", "a requested QoS that is none [MQTT-3.8.3-4]"),
        (b"\x82\x06\x00\x01\x00\x01a\x81", "a requested QoS that is none [MQTT-3.8.3-4]"),
        (b"\x82\x05\x00\x01\x00\x00\x00", "an empty topic filter [MQTT-4.7.3-1]"),
        (b"\x82\x06\x00\x01\x00\x01\x00\x00", "the topic filter holds U+0000 [MQTT-1.5.3-2]"),
        (
            b"\x82\x08\x00\x01\x00\x03#/a\x00",
            "'#' that is not the whole last level [MQTT-4.7.1-2]",
        ),
        (
            b"\x82\x07\x00\x01\x00\x02a#\x00",
            "'#' that is not the whole last level [MQTT-4.7.1-2]",
        ),
        (b"\x82\x07\x00\x01\x00\x02a+\x00", "'+' that is not a whole level [MQTT-4.7.1-3]"),
        (b"\xa2\x02\x00\x01", "an UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]"),
        (b"\xa2\x05\x00\x00\x00\x01a", "UNSUBSCRIBE with packet id 0 [MQTT-2.3.1-1]"),
        (b"\xc0\x01\x00", "PINGREQ is longer than what it holds"),
        (b"\xe0\x01\x00", "DISCONNECT is longer than what it holds"),
        (b"\x30\x80\x80\x80\x80\x01", "the remaining length has more than four bytes"),
        (b"\x30\xff\xff\xff\xff", "the remaining length has more than four bytes"),
    ],
)
def test_a_broken_rule_is_named(data: bytes, rule: str) -> None:
    assert broken_rule(data, max_packet_size=1_000_000_000) == rule


def test_a_packet_id_of_0_is_seen_on_a_known_topic_too() -> None:
    good = b"\x32\x05\x00\x01a\x00\x01"
    assert broken_rule(good + b"\x32\x05\x00\x01a\x00\x00").startswith("PUBLISH with packet id 0")


def test_a_packet_too_large_is_refused_at_its_header() -> None:
    assert decode(b"\x30\x08\x00\x01t12345", max_packet_size=15) == [Publish(b"t", b"12345")]
    assert decode(b"\x30\x0d", max_packet_size=15) == []
    assert broken_rule(b"\x30\x0e", max_packet_size=15) == "a packet of 16 bytes, 15 are allowed"
    assert broken_rule(b"\x30\xff\xff\xff\x7f").startswith("a packet of 268435460 bytes")


def test_what_lay_before_an_offence_is_handed_over_with_it() -> None:
    decoder = Decoder(100)
    decoder.feed(CONNECT)
    with pytest.raises(ProtocolViolation) as caught:
        decoder.feed(b"\xc0\x00\x40\x02\x00\x07\xd0\x00\xc0\x00")
    assert caught.value.packets == [Pingreq(), Puback(7)]
    with pytest.raises(ProtocolViolation, match="PINGRESP") as again:
        decoder.feed(b"\xc0\x00")
    assert again.value.packets == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x10\x10\x00\x04MQTT\x06\x02\x00\x3c\x03\x21\x00\x14\x00\x00", ("MQTT", 6)),
        (b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01d", ("MQIsdp", 3)),
        (b"\x10\x0d\x00\x04MQTT\x03\x02\x00\x00\x00\x01d", ("MQTT", 3)),
        (b"\x10\x0d\x00\x04MQTT\x84\x02\x00\x00\x00\x01d", ("MQTT", 0x84)),
    ],
)
def test_another_protocol_level_is_recognised_and_nothing_read_after_it(
    data: bytes, expected: tuple[str, int]
) -> None:
    decoder = Decoder(100)
    assert decoder.feed(data + b"\xff\x00") == [UnsupportedConnect(*expected)]
    assert decoder.feed(b"\xff\xff") == []


def test_nothing_is_read_after_a_disconnect() -> None:
    assert decode(b"\xe0\x00\xff\x00", b"\xff\x00") == [Disconnect()]


def test_bytes_of_any_kind_are_taken_and_payloads_are_bytes() -> None:
    data = CONNECT + b"\x32\x07\x00\x01a\x00\x01hi"
    for kind in (bytes, bytearray, memoryview):
        packets = Decoder(100).feed(kind(data))
        assert packets[1] == Publish(b"a", b"hi", 1, 1)
        assert isinstance(packets[1], Publish)
        assert type(packets[1].payload) is bytes
        assert type(packets[1].topic) is bytes


def test_what_a_server_says() -> None:
    assert encode_connack(ReasonCode.SUCCESS) == b"\x20\x02\x00\x00"
    assert encode_connack(ReasonCode.SUCCESS, session_present=True) == b"\x20\x02\x01\x00"
    assert encode_connack(ReasonCode.NOT_AUTHORIZED, session_present=True) == b"\x20\x02\x00\x05"
    assert encode_pubacks([]) == b""
    assert encode_pubacks([1, 0xFFFF]) == b"\x40\x02\x00\x01\x40\x02\xff\xff"
    assert encode_suback(10, [0, 1, SUBSCRIPTION_REFUSED]) == b"\x90\x05\x00\x0a\x00\x01\x80"
    assert encode_unsuback(10) == b"\xb0\x02\x00\x0a"
    assert PINGRESP == b"\xd0\x00"
    assert encode_publish(b"a/b", b"") == b"\x30\x05\x00\x03a/b"
    assert encode_publish(b"a/b", b"x", packet_id=10, qos=1, dup=True) == (
        b"\x3a\x08\x00\x03a/b\x00\x0ax"
    )


@pytest.mark.parametrize(("packet_id", "qos"), [(0, 1), (1, 0)])
def test_a_packet_id_is_written_with_qos_1_alone(packet_id: int, qos: int) -> None:
    with pytest.raises(ValueError, match="packet id"):
        encode_publish(b"a", b"", packet_id=packet_id, qos=qos)
