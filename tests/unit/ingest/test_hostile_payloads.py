"""Whatever bytes a device sends, decoding ends in points, in refusals or in a kind of error."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.errors import AppError, Invalid, Malformed
from libs.common.historian.point import Kind
from services.ingest.domain import payload
from services.ingest.domain.formats import FORMATS
from services.ingest.domain.payload import Decoded, Window, decode
from services.ingest.domain.protocol import PayloadFormat

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))
HUGE = b"1" + b"0" * 400


def take(payload: bytes) -> Decoded:
    return decode(payload, NOW, WINDOW)


def test_an_integer_of_four_hundred_digits_is_refused_like_any_other_that_no_double_holds() -> None:
    decoded = take(b'{"temp": %s, "level": 1}' % HUGE)
    assert [point.metric for point in decoded.points] == ["level"]
    assert [refusal.reason for refusal in decoded.refused] == ["not_a_number"]


def test_a_time_of_four_hundred_digits_is_a_bad_timestamp() -> None:
    decoded = take(b'{"ts": %s, "values": {"temp": 1}}' % HUGE)
    assert [refusal.reason for refusal in decoded.refused] == ["bad_timestamp"]


def test_control_characters_in_names_and_times_stay_out_of_what_is_said_about_them() -> None:
    """PostgreSQL has no text with U+0000: one such detail would fail its whole batch."""
    decoded = take(
        b'[{"ts": 1, "values": {}, "a\\u0000b": 1},'
        b' {"ts": "2999-01-01\\u000000:00:00Z", "values": {"temp": 1}},'
        b' {"ts": "1999-01-01\\u000000:00:00Z", "values": {"temp": 1}}]'
    )
    assert [r.reason for r in decoded.refused] == ["unknown_field", "clock_ahead", "too_old"]
    assert all(refusal.detail.isprintable() for refusal in decoded.refused)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": "\\ud800"}',
        b'{"a": "\\ud800\\u0041"}',
        b"\xff",
        b'{"\xe2temp": 1}',
        b'{"a": "\xff"}',
    ],
)
def test_text_that_is_no_unicode_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        take(payload)


def test_a_million_brackets_are_malformed() -> None:
    with pytest.raises(Malformed):
        take(b'{"a":' + b"[" * 1_000_000)


keys = st.sampled_from(["ts", "values", "temp", "", "a\0b", "x" * 129]) | st.text(max_size=4)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**330)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(keys, json_values, max_size=5) | json_values)
def test_any_json_is_taken_apart_or_refused(value: object) -> None:
    payload = json.dumps(value).encode()
    try:
        decoded = take(payload)
    except (Malformed, Invalid):
        return
    for refusal in decoded.refused:
        msgspec.json.encode(refusal.part)
        assert refusal.detail.isprintable()
        assert len(refusal.detail) < 400


@given(st.binary(max_size=60))
def test_any_bytes_are_taken_apart_or_refused(payload: bytes) -> None:
    try:
        take(payload)
    except (Malformed, Invalid):
        return


# Payloads that are small, and would take long or fill the memory

TAGS = b"m" + b"".join(b",t%d=v" % n for n in range(40_000)) + b" f=1"
BIG_MANTISSA = b"\xa1\x61a\xc4\x82\x20\xc2\x5a\x00\x03\x00\x00" + b"\xff" * 0x30000
"""{"a": 4([-1, <an integer of 196,608 bytes>])}"""


@pytest.mark.parametrize(
    ("written", "payload"),
    [
        pytest.param(PayloadFormat.INFLUX, TAGS, id="many-tags"),
        pytest.param(PayloadFormat.CBOR, BIG_MANTISSA, id="big-decimal"),
        pytest.param(PayloadFormat.CBOR, b"\x9a\0\x30\0\0" + b"\1" * 0x300000, id="many-items"),
        pytest.param(PayloadFormat.INFLUX, b"x\n" * 1_000_000, id="many-bad-lines"),
        pytest.param(
            PayloadFormat.CSV,
            b"ts," + b",".join(b"c%d" % n for n in range(999)) + (b"\n" + b",1" * 999) * 1_000,
            id="wide-table",
        ),
        pytest.param(PayloadFormat.CSV, b"ts,a\n," + b"1" * 100_000 + b"x", id="long-number"),
        pytest.param(PayloadFormat.CSV, b"ts,a\n" + b"1" * 100_000 + b"x,1", id="long-time"),
        pytest.param(
            PayloadFormat.SENML_JSON,
            b'[{"bn":"%s","n":"a","v":1}%s]' % (b"a" * 600_000, b',{"n":"b","v":1}' * 9_999),
            id="long-base-name",
        ),
    ],
)
def test_what_a_device_may_send_at_once_is_read_or_refused_soon(
    written: PayloadFormat, payload: bytes
) -> None:
    began = time.process_time()
    with suppress(AppError):
        FORMATS[written](payload, NOW, WINDOW)
    # Of the processor's time, not the clock's: each took from 2 s to minutes before it was bounded.
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param(PayloadFormat.JSON, json.dumps({f"m{n}": 1 for n in range(101)}), id="one"),
        pytest.param(PayloadFormat.JSON, json.dumps([{"a": 1, "b": 2}] * 51), id="list"),
        pytest.param(PayloadFormat.NDJSON, '{"a": 1, "b": null}\n' * 51, id="lines"),
        pytest.param(PayloadFormat.CSV, "ts,a,b\n" + ",1,inf\n" * 51, id="table"),
    ],
)
def test_a_message_with_more_points_than_are_taken_at_once_is_refused_whole(
    written: PayloadFormat, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "MOST_POINTS", 100)
    with pytest.raises(Invalid, match="at most 100 points"):
        FORMATS[written](message.encode(), NOW, WINDOW)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (PayloadFormat.JSON, '{"big": 9007199254740993, "far": -10000000000000000000000000000}'),
        (PayloadFormat.JSON, '{"values": {"big": 9007199254740993, "far": -9007199254740994}}'),
        (
            PayloadFormat.JSON,
            '{"values": {"big": 9007199254740993, "far": -9007199254740994}, "quality": "good"}',
        ),
        (PayloadFormat.JSON, '[{"values": {"big": 9007199254740993, "far": -9007199254740994}}]'),
        (PayloadFormat.CSV, "ts,big,far\n,9007199254740993,-9007199254740994"),
        (PayloadFormat.INFLUX, "m big=9007199254740993i,far=-9007199254740994i"),
        (
            PayloadFormat.SENML_JSON,
            '[{"n": "big", "v": 9007199254740993}, {"n": "far", "v": -9007199254740994}]',
        ),
    ],
)
def test_an_integer_that_no_double_holds_is_refused_in_every_shape_and_never_rounded(
    written: PayloadFormat, message: str
) -> None:
    decoded = FORMATS[written](message.encode(), NOW, WINDOW)
    assert decoded.points == []
    assert [refusal.reason for refusal in decoded.refused] == ["not_a_number"] * 2


def test_a_number_that_only_cbor_can_write_is_refused_for_itself_and_never_a_text() -> None:
    written = {
        "huge": Decimal("1e1000000000"),
        "long": 2**400,
        "far": -(2**70),
        "fine": Decimal("1.5"),
    }
    decoded = FORMATS[PayloadFormat.CBOR](cbor2.dumps(written), NOW, WINDOW)
    assert [(p.metric, p.kind, p.value) for p in decoded.points] == [("fine", Kind.NUMBER, 1.5)]
    assert {(r.metric, r.reason) for r in decoded.refused} == {
        ("huge", "not_a_number"),
        ("long", "not_a_number"),
        ("far", "not_a_number"),
    }


@pytest.mark.parametrize(
    ("factor", "hint"),
    [
        (1e-3, "it is 10^3 times too little"),
        (1e3, "it is 10^3 times too much"),
    ],
)
def test_a_time_counted_in_another_unit_is_told_so(factor: float, hint: str) -> None:
    ts = int(NOW.timestamp() * 1000 * factor)
    [refusal] = decode(b'{"ts": %d, "values": {"temp": 1}}' % ts, NOW, WINDOW).refused
    assert hint in refusal.detail
