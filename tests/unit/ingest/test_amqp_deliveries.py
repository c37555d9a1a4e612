"""Deliveries in a stream of AMQP's frames, however the stream is cut and whatever devices write."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, frame, header

from services.ingest.protocols.amqp_deliveries import HEARTBEAT, Deliveries, Delivery

DEVICE = "6c0a55a4-2b0e-4c3e-9e2a-0f3f5d1c2b3a"
MOST = 1_000


def content(channel: int, properties: commands.Basic.Properties, payload: bytes) -> bytes:
    """Write a message's properties and its body, in two parts."""
    half = len(payload) // 2
    parts = [part for part in (payload[:half], payload[half:]) if part]
    return frame.marshal(header.ContentHeader(0, len(payload), properties), channel) + b"".join(
        frame.marshal(body.ContentBody(part), channel) for part in parts
    )


def delivered(
    tag: int, payload: bytes, *, channel: int = 1, redelivered: bool = False, **properties: object
) -> bytes:
    """Write a delivery as the broker does."""
    method = commands.Basic.Deliver("ctag", tag, redelivered, "devices", f"{DEVICE}.telemetry")
    return frame.marshal(method, channel) + content(
        channel,
        commands.Basic.Properties(**properties),  # type: ignore[arg-type]  # as each is
        payload,
    )


def read(data: bytes, cuts: list[int] | None = None) -> tuple[list[Delivery], bytes]:
    """Feed a stream in pieces; return what was delivered, and what was left for others."""
    found: list[Delivery] = []
    deliveries = Deliveries(found.append, MOST)
    edges = [0, *sorted(cuts or []), len(data)]
    passed = [deliveries.feed(data[begin:end]) for begin, end in pairwise(edges)]
    return found, b"".join(passed)


ACK = frame.marshal(commands.Basic.Ack(7, True), 2)
RETURNED = frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "", "q"), 2) + content(
    2, commands.Basic.Properties(message_id="m"), b"returned"
)


def test_what_matters_of_a_message_is_read() -> None:
    found, passed = read(
        delivered(
            3,
            b'{"temp": 1}',
            redelivered=True,
            content_type="application/json",
            content_encoding="identity",
            headers={
                "first": "text",
                "nested": {"a": [1, 2]},
                "x-delivery-count": 2**40,
                "z": True,
            },
            delivery_mode=2,
            priority=1,
            correlation_id="c",
            reply_to="r",
            expiration="1000",
            message_id="m",
            message_type="t",
            user_id=DEVICE,
            app_id="a",
        )
    )
    key = f"{DEVICE}.telemetry"
    assert found == [Delivery(1, 3, key, "application/json", DEVICE, 2**40, 11, b'{"temp": 1}')]
    assert passed == b""


def test_what_is_nobodys_delivery_passes_untouched() -> None:
    stream = HEARTBEAT + ACK + RETURNED
    assert read(stream) == ([], stream)


def test_a_broker_that_speaks_another_version_is_heard() -> None:
    assert read(b"AMQP\x00\x01\x00\x00 and so on") == ([], b"AMQP\x00\x01\x00\x00 and so on")


def test_channels_do_not_mix() -> None:
    one, other = delivered(1, b"one" * 10), delivered(1, b"other" * 10, channel=5)
    method = len(
        frame.marshal(commands.Basic.Deliver("ctag", 1, False, "devices", f"{DEVICE}.telemetry"), 1)
    )
    found, passed = read(one[:method] + other[:method] + one[method:] + RETURNED + other[method:])
    assert [(message.channel, message.body) for message in found] == [
        (1, b"one" * 10),
        (5, b"other" * 10),
    ]
    assert passed == RETURNED


@pytest.mark.parametrize("size", [0, 1, MOST, MOST + 1, 50_000])
def test_no_more_of_a_body_is_kept_than_is_taken(size: int) -> None:
    found, _ = read(delivered(1, b"x" * size, user_id=DEVICE))
    assert [(message.size, len(message.body)) for message in found] == [(size, min(size, MOST))]


def test_a_count_is_the_brokers_only_if_the_message_came_before() -> None:
    found, _ = read(delivered(1, b"{}", headers={"x-delivery-count": 2**40}, user_id=DEVICE))
    assert found[0].failures == 0


@given(
    bodies=st.lists(st.binary(max_size=40), max_size=5),
    cuts=st.lists(st.integers(0, 600), max_size=8),
)
def test_wherever_the_stream_is_cut_it_says_the_same(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(
        delivered(tag, payload, user_id=DEVICE) + ACK + RETURNED
        for tag, payload in enumerate(bodies, start=1)
    )
    found, passed = read(stream, [min(cut, len(stream)) for cut in cuts])
    assert [(message.tag, message.body, message.user_id) for message in found] == [
        (tag, payload, DEVICE) for tag, payload in enumerate(bodies, start=1)
    ]
    assert passed == (ACK + RETURNED) * len(bodies)


@given(flags=st.integers(0, 0xFFFF), properties=st.binary(max_size=80), redelivered=st.booleans())
def test_properties_of_any_form_harm_nobody(
    flags: int, properties: bytes, redelivered: bool
) -> None:
    method = commands.Basic.Deliver("ctag", 1, redelivered, "devices", f"{DEVICE}.telemetry")
    head = b"\x00\x3c\x00\x00" + (2).to_bytes(8, "big") + flags.to_bytes(2, "big") + properties
    spoilt = (
        frame.marshal(method, 1)
        + b"\x02\x00\x01"
        + len(head).to_bytes(4, "big")
        + head
        + b"\xce"
        + frame.marshal(body.ContentBody(b"{}"), 1)
    )
    found, passed = read(spoilt + delivered(2, b"next", user_id=DEVICE) + ACK)
    assert [(message.tag, message.body) for message in found] == [(1, b"{}"), (2, b"next")]
    assert found[1].user_id == DEVICE
    assert passed == ACK


def test_properties_cut_short_name_nobody() -> None:
    """Else a text that merely begins like the device's id would pass for it."""
    found, _ = read(_with_user_id(bytes([len(DEVICE) + 1]) + DEVICE.encode()))
    assert found[0].user_id is None


def _with_user_id(written: bytes) -> bytes:
    method = commands.Basic.Deliver("ctag", 1, False, "devices", f"{DEVICE}.telemetry")
    head = b"\x00\x3c\x00\x00" + (0).to_bytes(8, "big") + (1 << 4).to_bytes(2, "big") + written
    return (
        frame.marshal(method, 1) + b"\x02\x00\x01" + len(head).to_bytes(4, "big") + head + b"\xce"
    )
