"""How a payload becomes points."""

import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid, Malformed
from libs.common.historian.point import Kind
from services.ingest.domain.payload import (
    Point,
    Window,
    as_us,
    decode,
    decode_readings,
    read_ts,
)

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
NOW_US = as_us(NOW)
WINDOW = Window.around(NOW, past=timedelta(days=365), ahead=timedelta(minutes=5))


def points(payload: str | bytes) -> list[Point]:
    raw = payload.encode() if isinstance(payload, str) else payload
    decoded = decode(raw, NOW, WINDOW)
    assert decoded.refused == []
    return decoded.points


def reasons(payload: str) -> list[tuple[int, str | None, str]]:
    return [(r.index, r.metric, r.reason) for r in decode(payload.encode(), NOW, WINDOW).refused]


@pytest.mark.parametrize(
    "payload",
    [
        '{"temp": 21.5}',
        '{"values": {"temp": 21.5}}',
        '[{"temp": 21.5}]',
        '[{"values": {"temp": 21.5}}]',
        '{"ts": "2026-03-29T01:30:00Z", "values": {"temp": 21.5}}',
        '{"ts": "2026-03-29T03:30:00+02:00", "values": {"temp": 21.5}}',
        f'{{"ts": {NOW_US // 1000}, "values": {{"temp": 21.5}}}}',
        f'{{"ts": {NOW_US / 1000}, "values": {{"temp": 21.5}}}}',
    ],
)
def test_every_spelling_of_one_reading_is_the_same_point(payload: str) -> None:
    assert points(payload) == [Point("temp", NOW_US, Kind.NUMBER, 21.5)]


def test_integers_bools_and_texts_keep_their_kind() -> None:
    assert points('{"rpm": 1480, "running": true, "mode": "auto"}') == [
        Point("rpm", NOW_US, Kind.NUMBER, 1480.0),
        Point("running", NOW_US, Kind.BOOL, 1.0),
        Point("mode", NOW_US, Kind.TEXT, "auto"),
    ]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ('{"ts": "2026-03-29T01:30:00", "values": {"t": 1}}', "naive_timestamp"),
        ('{"ts": "yesterday", "values": {"t": 1}}', "bad_timestamp"),
        ('{"ts": true, "values": {"t": 1}}', "bad_timestamp"),
        ('{"ts": 1e300, "values": {"t": 1}}', "bad_timestamp"),
        ('{"ts": "2026-03-29T01:35:01Z", "values": {"t": 1}}', "clock_ahead"),
        ('{"ts": "2099-01-01T00:00:00Z", "values": {"t": 1}}', "clock_ahead"),
        ('{"ts": "1970-01-01T00:00:00Z", "values": {"t": 1}}', "too_old"),
        ('{"ts": 1, "values": {"t": 1}}', "too_old"),
        ('{"values": 7}', "malformed"),
        ('{"ts": 1, "value": {"t": 1}}', "malformed"),
        ('{"values": {"t": 1}, "unit": "C"}', "unknown_field"),
    ],
)
def test_a_reading_that_cannot_be_placed_says_why(payload: str, reason: str) -> None:
    assert reasons(payload) == [(0, None, reason)]


def test_bad_values_are_named_and_their_neighbours_kept() -> None:
    payload = json.dumps(
        {"ok": 1, "": 1, "x" * 129: 1, "none": None, "list": [1], "big": 2**53 + 1, "nul": "a\0"}
    )
    decoded = decode(payload.encode(), NOW, WINDOW)
    assert [p.metric for p in decoded.points] == ["ok"]
    assert {(r.metric, r.reason) for r in decoded.refused} == {
        ("", "bad_metric_name"),
        ("x" * 128, "bad_metric_name"),
        ("none", "unsupported_value"),
        ("list", "unsupported_value"),
        ("big", "not_a_number"),
        ("nul", "bad_text"),
    }


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"temp": NaN}',
        b'{"temp": Infinity}',
        b"\xff\xfe",
        b'\xef\xbb\xbf{"temp": 1}',
        b'{"temp": 1} {"temp": 2}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        decode(payload, NOW, WINDOW)


@pytest.mark.parametrize("payload", [b"7", b'"temp"', b"null", b"true"])
def test_json_of_another_shape_is_invalid(payload: bytes) -> None:
    with pytest.raises(Invalid):
        decode(payload, NOW, WINDOW)


def test_a_point_knows_which_reading_it_came_from() -> None:
    decoded = decode_readings(
        [{"values": {"a": 1, "b": 2}}, {"values": {}}, {"values": {"c": 3}}], NOW, WINDOW
    )
    assert [decoded.reading_of(position) for position in range(3)] == [0, 0, 2]


VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
    st.integers(-(2**53), 2**53),
)
METRICS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=128
).filter(lambda metric: metric not in {"ts", "values"})


@given(st.dictionaries(METRICS, VALUES, min_size=1, max_size=8))
def test_what_a_device_may_send_arrives_exactly(values: dict[str, float | bool | str]) -> None:
    for payload in (values, {"values": values}, [{"values": values}]):
        decoded = decode(json.dumps(payload).encode(), NOW, WINDOW)
        assert decoded.refused == []
        assert {p.metric: p.value for p in decoded.points} == {
            metric: float(value) if isinstance(value, int | float) else value
            for metric, value in values.items()
        }


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(payload: bytes) -> None:
    with contextlib.suppress(Malformed, Invalid):
        decode(payload, NOW, WINDOW)


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_read_to_the_microsecond(moment: datetime) -> None:
    assert read_ts(moment.isoformat()) == as_us(moment)
