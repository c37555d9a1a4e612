"""What holds for every packet, every cut of the byte stream, and every byte anyone may send."""

from itertools import pairwise

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.protocols.mqtt.body import encode_variable
from services.ingest.protocols.mqtt.decoder import Decoder
from services.ingest.protocols.mqtt.encoder import encode_publish
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
    Subscribe,
    Unsubscribe,
    Will,
)
from tests.unit.ingest.mqtt import device_packets

packet_ids = st.integers(1, 65_535)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
topics = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20
).map(str.encode)
levels = st.one_of(
    st.just("+"),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#/"), max_size=5),
)
filters = (
    st.lists(levels, min_size=1, max_size=4)
    .flatmap(lambda some: st.sampled_from([some, [*some, "#"]]))
    .map("/".join)
    .filter(bool)
    .map(str.encode)
)
# Some payloads reach into the second byte of the remaining length.
payloads = st.binary(max_size=60) | st.binary(min_size=120, max_size=300)


@st.composite
def connects(draw: st.DrawFn) -> Connect:
    username = draw(st.none() | texts)
    return Connect(
        client_id=draw(texts),
        username=username,
        password=draw(st.none() | st.binary(max_size=20)) if username is not None else None,
        clean_session=draw(st.booleans()),
        keep_alive=draw(st.integers(0, 65_535)),
        will=draw(st.none() | st.builds(Will, topics, payloads, st.integers(0, 2), st.booleans())),
    )


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    qos = draw(st.integers(0, 2))
    return Publish(
        # Few topics, so that the same one comes again.
        draw(st.sampled_from([b"a/b", b"a/bc", "ä".encode()]) | topics),
        draw(payloads),
        draw(packet_ids) if qos else 0,
        qos,
        draw(st.booleans()) if qos else False,
        draw(st.booleans()),
    )


later_packets = st.one_of(
    publishes(),
    publishes(),
    st.builds(Puback, packet_ids),
    st.builds(Pubrec, packet_ids),
    st.builds(Pubrel, packet_ids),
    st.builds(Pubcomp, packet_ids),
    st.builds(
        Subscribe,
        packet_ids,
        st.lists(st.tuples(filters, st.integers(0, 2)), min_size=1, max_size=4).map(tuple),
    ),
    st.builds(Unsubscribe, packet_ids, st.lists(filters, min_size=1, max_size=4).map(tuple)),
    st.just(Pingreq()),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Packet]:
    packets: list[Packet] = [draw(connects()), *draw(st.lists(later_packets, max_size=8))]
    if draw(st.booleans()):
        packets.append(Disconnect())
    return packets


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in pairwise(edges)]


def outcome(pieces: list[bytes], max_packet_size: int) -> tuple[list[Packet], str | None]:
    """All packets of a stream and the rule it broke, if any."""
    decoder = Decoder(max_packet_size)
    packets: list[Packet] = []
    for piece in pieces:
        try:
            packets += decoder.feed(piece)
        except ProtocolViolation as violation:
            return packets + violation.packets, violation.reason
    return packets, None


@given(conversations())
def test_what_a_device_writes_is_what_is_read(packets: list[Packet]) -> None:
    data = b"".join(map(device_packets.encode, packets))
    assert Decoder(10_000).feed(data) == packets


@given(conversations(), st.lists(st.integers(0, 10_000), max_size=20))
def test_how_the_network_cuts_the_bytes_does_not_matter(
    packets: list[Packet], places: list[int]
) -> None:
    data = b"".join(map(device_packets.encode, packets))
    assert outcome(cut(data, places), 10_000) == (packets, None)


@given(publishes())
def test_what_a_server_publishes_a_device_would_write_alike(message: Publish) -> None:
    # It publishes nothing that is to be retained.
    message = msgspec.structs.replace(message, retain=False)
    written = encode_publish(
        message.topic,
        message.payload,
        packet_id=message.packet_id,
        qos=message.qos,
        dup=message.dup,
    )
    assert written == device_packets.encode(message)


@given(st.integers(0, 268_435_455))
def test_a_remaining_length_is_written_as_the_standard_computes_it(length: int) -> None:
    encoded = encode_variable(length)
    assert sum((byte & 127) << 7 * place for place, byte in enumerate(encoded)) == length
    assert [byte >= 128 for byte in encoded] == [True] * (len(encoded) - 1) + [False]
    assert len(encoded) == 1 or encoded[-1] != 0


def nearly(packets: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes that are nearly MQTT: good packets, headers of every type, noise."""
    return st.one_of(
        packets,
        st.builds(
            lambda first, body: bytes([first, len(body)]) + body,
            st.integers(0, 255),
            st.binary(max_size=30),
        ),
        st.binary(max_size=8),
    )


noise = nearly(later_packets.map(device_packets.encode))


@settings(max_examples=300)
@given(
    connects().map(device_packets.encode) | st.just(b""),
    st.lists(noise, max_size=6).map(b"".join),
    st.lists(st.integers(0, 1_000), max_size=12),
    st.integers(20, 300),
)
def test_any_bytes_at_all_give_packets_or_one_violation_however_they_are_cut(
    beginning: bytes, noise: bytes, places: list[int], max_packet_size: int
) -> None:
    data = beginning + noise
    whole = outcome([data], max_packet_size)
    assert outcome(cut(data, places), max_packet_size) == whole
    assert outcome([bytes([byte]) for byte in data], max_packet_size) == whole


@given(conversations(), st.integers(0, 10_000), st.integers(0, 255))
def test_one_flipped_byte_raises_nothing_but_a_violation(
    packets: list[Packet], place: int, value: int
) -> None:
    data = bytearray(b"".join(map(device_packets.encode, packets)))
    data[place % len(data)] = value
    outcome([bytes(data)], 10_000)
