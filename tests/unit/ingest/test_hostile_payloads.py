"""Whatever bytes a device sends, decoding ends in points, in refusals or in a kind of error."""

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.common.errors import Invalid, Malformed
from services.ingest.domain.payload import Decoded, Window, decode

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


@pytest.mark.parametrize("payload", [b'{"a": "\\ud800"}', b'{"a": "\\ud800\\u0041"}', b"\xff"])
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
