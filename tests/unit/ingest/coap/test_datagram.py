"""Datagrams are cut and made as RFC 7252 has them; aiocoap reads what we make."""

import pytest
from aiocoap import Message
from aiocoap.numbers import Code
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed, TooManyRequests, Unavailable, UnsupportedMedia
from services.ingest.protocols.coap.datagram import (
    CHANGED,
    CON,
    NON,
    Named,
    acknowledgement,
    head_of,
    read_path,
    refusal,
    reset,
    tail_of,
    unconfirmed,
)
from services.ingest.protocols.coap.links import links

TOKEN = "iiotd_" + "a" * 43


def request(kind: int, mid: int, token: bytes) -> bytes:
    message = Message(code=Code.POST, payload=b"{}", _mid=mid, _mtype=kind, _token=token)
    encoded: bytes = message.encode()
    return encoded


@given(st.integers(0, 65_535), st.binary(max_size=8), st.binary(min_size=1, max_size=50))
def test_an_answer_belongs_to_its_request(mid: int, token: bytes, payload: bytes) -> None:
    tail = tail_of(Message(code=Code.CONTENT, payload=payload, content_format=50, max_age=3))
    piggybacked = Message.decode(acknowledgement(head_of(request(CON, mid, token)), tail))
    assert (piggybacked.mid, piggybacked.token, piggybacked.code) == (mid, token, Code.CONTENT)
    assert (piggybacked.payload, piggybacked.opt.max_age) == (payload, 3)
    assert int(piggybacked.mtype) == 2
    own = Message.decode(unconfirmed(head_of(request(NON, mid, token)), tail, 4711))
    assert (own.mid, own.token, own.payload, int(own.mtype)) == (4711, token, payload, NON)


def test_the_short_answers() -> None:
    head = head_of(request(CON, 0x1234, b"tok"))
    assert acknowledgement(head, CHANGED) == b"\x63\x44\x12\x34tok"
    assert acknowledgement(head, b"") == b"\x60\x00\x12\x34"
    assert reset(request(CON, 0x1234, b"tok")) == b"\x70\x00\x12\x34"


@pytest.mark.parametrize(
    ("segments", "queries", "named"),
    [
        (["v1", "telemetry"], [f"token={TOKEN}"], Named(TOKEN, ("telemetry",))),
        (["v1", TOKEN, "telemetry"], [], Named(TOKEN, ("telemetry",))),
        (["api", "v1", TOKEN, "telemetry"], [], Named(TOKEN, ("telemetry",))),
        (["v1", "telemetry"], [], Named(None, ("telemetry",))),
        (["v1", "commands", "x", "reply"], [], Named(None, ("commands", "x", "reply"))),
        (["v1"], [], None),
        (["v1", TOKEN], [], None),
        (["v2", "telemetry"], [], None),
        ([], [], None),
    ],
)
def test_what_a_path_names(segments: list[str], queries: list[str], named: Named | None) -> None:
    assert read_path(segments, queries) == named


def test_errors_as_coap_says_them() -> None:
    assert refusal(Malformed("not JSON")).code is Code.BAD_REQUEST
    assert refusal(UnsupportedMedia("x")).code is Code.UNSUPPORTED_CONTENT_FORMAT
    assert refusal(TooManyRequests("x", retry_after_s=0.2)).opt.max_age == 1
    away = refusal(Unavailable("the bus is away", retry_after_s=7))
    assert (away.code, away.opt.max_age) == (Code.SERVICE_UNAVAILABLE, 7)
    assert len(refusal(Malformed("x" * 1000)).payload) <= 120


def test_links_fit_all_filters() -> None:
    assert links(["rt=iiot.telemetry"]) == (
        '</v1/telemetry>;rt="iiot.telemetry";if="core.b";ct="50 60 110 112"'
    )
    assert links(["ct=112", "rt=iiot.*"]).startswith("</v1/telemetry>")
    assert links(["rt=nothing"]) == ""
    assert links(["href=/v1/comm*"]).endswith(";obs")
    assert links([]).count("</v1/") == 7
