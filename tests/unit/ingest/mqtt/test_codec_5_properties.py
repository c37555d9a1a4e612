"""What holds for every packet of MQTT 5, every cut of the bytes, and every byte anyone may send."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ingest.protocols.mqtt.body import Body, Within, encode_properties
from services.ingest.protocols.mqtt.decoder import Decoder
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
    Subscribe,
    Unsubscribe,
    Will,
)
from tests.unit.ingest.mqtt.device_packets_5 import encode
from tests.unit.ingest.mqtt.test_codec_properties import (
    cut,
    filters,
    nearly,
    packet_ids,
    payloads,
    texts,
    topics,
)

ALIASES = 4
bits = st.none() | st.integers(0, 1)
shorts = st.none() | st.integers(1, 65_535)
longs = st.none() | st.integers(0, 2**32 - 1)
data = st.none() | st.binary(max_size=10)
user = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)


def some(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[Properties | None]:
    """Properties of a packet; None, as a decoder has it, where there is not one."""
    built = st.builds(Properties, user=user, **fields)
    return built.map(lambda found: None if found == Properties() else found)


about = {
    "payload_format": bits,
    "message_expiry": longs,
    "content_type": st.none() | texts,
    "response_topic": st.none() | topics,
    "correlation_data": data,
}
reasons = some(reason_string=st.none() | texts)
taken = st.sampled_from([0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
released = st.sampled_from([0x00, 0x92])


@st.composite
def connects(draw: st.DrawFn) -> Connect:
    return Connect(
        client_id=draw(texts),
        username=draw(st.none() | texts),
        password=draw(data),
        clean_session=draw(st.booleans()),
        keep_alive=draw(st.integers(0, 65_535)),
        will=draw(
            st.none()
            | st.builds(
                Will,
                topics,
                payloads,
                st.integers(0, 2),
                st.booleans(),
                some(will_delay=longs, **about),
            )
        ),
        level=5,
        properties=draw(
            some(
                session_expiry=longs,
                receive_maximum=shorts,
                maximum_packet_size=st.none() | st.integers(1, 2**32 - 1),
                topic_alias_maximum=st.none() | st.integers(0, 65_535),
                request_problem_info=bits,
                request_response_info=bits,
                authentication_method=st.none() | texts,
            )
        ),
    )


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    qos = draw(st.integers(0, 2))
    return Publish(
        draw(st.sampled_from([b"a/b", b"a/bc"]) | topics),
        draw(payloads),
        draw(packet_ids) if qos else 0,
        qos,
        draw(st.booleans()) if qos else False,
        draw(st.booleans()),
        draw(some(topic_alias=st.none() | st.integers(1, ALIASES), **about)),
    )


later_packets: st.SearchStrategy[Packet] = st.one_of(
    publishes(),
    publishes(),
    st.builds(Puback, packet_ids, taken, reasons),
    st.builds(Pubrec, packet_ids, taken, reasons),
    st.builds(Pubrel, packet_ids, released, reasons),
    st.builds(Pubcomp, packet_ids, released, reasons),
    st.builds(
        Subscribe,
        packet_ids,
        st.lists(st.tuples(filters, st.integers(0, 2)), min_size=1, max_size=4).map(tuple),
        some(subscription_id=st.none() | st.integers(1, 268_435_455)),
    ),
    st.builds(
        Unsubscribe, packet_ids, st.lists(filters, min_size=1, max_size=4).map(tuple), some()
    ),
    st.just(Pingreq()),
    st.builds(Auth, st.sampled_from([0, 0x18, 0x19]), some(authentication_method=texts)),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Packet]:
    packets: list[Packet] = [draw(connects()), *draw(st.lists(later_packets, max_size=8))]
    if draw(st.booleans()):
        packets.append(draw(st.builds(Disconnect, st.sampled_from([0, 4]), reasons)))
    return packets


def outcome(pieces: list[bytes], max_packet_size: int) -> tuple[list[Packet], object]:
    """All packets of a stream and the rule it broke, if any."""
    decoder = Decoder(max_packet_size, ALIASES)
    packets: list[Packet] = []
    for piece in pieces:
        try:
            packets += decoder.feed(piece)
        except ProtocolViolation as violation:
            return packets + violation.packets, (violation.code, violation.reason)
    return packets, None


@settings(
    suppress_health_check=[HealthCheck.too_slow]
)  # conversations are long, machines may be busy
@given(conversations(), st.lists(st.integers(0, 10_000), max_size=20))
def test_what_a_device_writes_is_what_is_read_however_it_is_cut(
    packets: list[Packet], places: list[int]
) -> None:
    written = b"".join(map(encode, packets))
    assert outcome([written], 10_000) == (packets, None)
    assert outcome(cut(written, places), 10_000) == (packets, None)


@given(some(will_delay=longs, **about))
def test_properties_as_a_server_writes_them_are_read_alike(found: Properties | None) -> None:
    written = encode_properties(found)
    body = Body(written, 0, len(written))
    assert body.properties(Within.WILL) == found
    assert not body.has_more()


noise = nearly(later_packets.map(encode))


@settings(max_examples=300)
@given(
    connects().map(encode),
    st.lists(noise, max_size=6).map(b"".join),
    st.lists(st.integers(0, 1_000), max_size=12),
    st.integers(20, 300),
)
def test_any_bytes_at_all_give_packets_or_one_violation_however_they_are_cut(
    beginning: bytes, noise: bytes, places: list[int], max_packet_size: int
) -> None:
    written = beginning + noise
    whole = outcome([written], max_packet_size)
    assert outcome(cut(written, places), max_packet_size) == whole
    assert outcome([bytes([byte]) for byte in written], max_packet_size) == whole


@settings(max_examples=300)
@given(conversations(), st.integers(0, 10_000), st.integers(0, 255))
def test_one_flipped_byte_raises_nothing_but_a_violation(
    packets: list[Packet], place: int, value: int
) -> None:
    written = bytearray(b"".join(map(encode, packets)))
    written[place % len(written)] = value
    outcome([bytes(written)], 10_000)
