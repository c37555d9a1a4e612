"""Telemetry as devices write it, read into points. Pure: the time of receipt is an argument.

Taken are `{"temp": 21.5}`, `{"values": {"temp": 21.5}}`, `{"ts": …, "values": {…}}` and arrays of
these. `ts` is RFC 3339 with an offset, or milliseconds since 1970. A point without a `ts` of its
own has the time of receipt, each reading of an array 1 µs after the one before. What is wrong with one point is said of that point; the others stand.
"""

import math
from bisect import bisect_right
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, compress
from typing import Any, NamedTuple

import msgspec

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.historian.point import Kind

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_METRIC = 128
LONGEST_TEXT = 4096
LONGEST_SHOWN = 200
MOST_READINGS = 10_000
MOST_EXACT_INTEGER = 2**53

_BAD_NAME = f"a metric's name has 1 to {LONGEST_METRIC} characters and no NUL"
_BAD_TEXT = f"a text has at most {LONGEST_TEXT} characters and no NUL"


class Point(NamedTuple):
    """One measured value: `ts` in µs since 1970 UTC; bools are numbers of kind BOOL."""

    metric: str
    ts: int
    kind: Kind
    value: float | str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one point, or one reading of a list, is not taken.

    `index` counts the readings from 0; `part` is what is refused, as parsed JSON.
    """

    index: int
    metric: str | None
    reason: str
    detail: str
    part: object


@dataclass(slots=True)
class Decoded:
    """What a payload holds."""

    received_at: int
    """In µs since 1970 UTC."""
    points: list[Point] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """How many points there are up to the end of each reading."""

    def reading_of(self, position: int) -> int:
        """Return which reading the point at a position of `points` came from, counted from 0."""
        return bisect_right(self.ends, position)

    def drop(self, metrics: Set[str]) -> None:
        """Forget the points of these metrics."""
        kept = [metric not in metrics for metric, *_ in self.points]
        upto = [0, *accumulate(kept)]
        self.ends = [upto[end] for end in self.ends]
        self.points = list(compress(self.points, kept))


@dataclass(frozen=True, slots=True)
class Window:
    """Which times are believed, both in µs since 1970 UTC, inclusive."""

    earliest: int
    latest: int

    @staticmethod
    def around(now: datetime, *, past: timedelta, ahead: timedelta) -> "Window":
        """Return the window from `now - past` to `now + ahead`."""
        return Window(as_us(now - past), as_us(now + ahead))


class _Reading(msgspec.Struct, forbid_unknown_fields=True):
    values: dict[str, float | bool | str]
    ts: int | float | str | None = None


_decode_reading = msgspec.json.Decoder(_Reading).decode
_decode_any = msgspec.json.Decoder().decode


def decode(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read a device's payload.

    Raises Malformed if it is not JSON, Invalid if it is JSON of another shape. What is wrong with
    single points is in `refused`.
    """
    decoded = Decoded(as_us(received_at))
    try:
        # What well-behaved devices send, checked in one go by the parser itself.
        reading = _decode_reading(payload)
    except msgspec.MsgspecError:
        _add_all(decoded, parse_json(payload), received_at, window)
        return decoded
    _add_values(decoded, 0, reading.ts, reading.values, received_at, window)
    return decoded


def decode_readings(readings: list[Any], received_at: datetime, window: Window) -> Decoded:
    """Read readings that are parsed already, as `decode`; `index` counts within this list."""
    decoded = Decoded(as_us(received_at))
    for index, reading in enumerate(readings):
        _add_reading(decoded, index, reading, received_at, window)
        decoded.ends.append(len(decoded.points))
    return decoded


def parse_json(payload: bytes) -> Any:
    """Parse JSON strictly. Raises Malformed, saying where it breaks."""
    if payload.startswith(b"\xef\xbb\xbf"):
        raise Malformed("the body begins with a byte order mark, which JSON does not allow")
    try:
        return _decode_any(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not JSON: {error}") from error


def as_us(moment: datetime) -> int:
    """Return a moment as µs since 1970 UTC."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def _add_all(decoded: Decoded, parsed: Any, received_at: datetime, window: Window) -> None:
    if isinstance(parsed, dict):
        _add_reading(decoded, 0, parsed, received_at, window)
        return
    if not isinstance(parsed, list):
        raise Invalid(
            "telemetry is an object or an array of objects",
            errors=[FieldError("#", "not an object or an array")],
        )
    if len(parsed) > MOST_READINGS:
        raise Invalid(
            f"at most {MOST_READINGS} readings in one message",
            errors=[FieldError("#", f"holds {len(parsed)} readings")],
        )
    for index, reading in enumerate(parsed):
        _add_reading(decoded, index, reading, received_at, window)
        decoded.ends.append(len(decoded.points))


def _add_reading(
    decoded: Decoded, index: int, reading: Any, received_at: datetime, window: Window
) -> None:
    if not isinstance(reading, dict):
        decoded.refused.append(Refusal(index, None, "malformed", "a reading is an object", reading))
        return
    values = reading.get("values")
    if not isinstance(values, dict):
        if "values" in reading or "ts" in reading:
            decoded.refused.append(
                Refusal(index, None, "malformed", "`values` is an object of metrics", reading)
            )
            return
        _add_values(decoded, index, None, reading, received_at, window)
        return
    unknown = reading.keys() - {"ts", "values"}
    if unknown:
        named = _show(", ".join(sorted(unknown)))
        decoded.refused.append(
            Refusal(index, None, "unknown_field", f"not understood: {named}", reading)
        )
        return
    _add_values(decoded, index, reading.get("ts"), values, received_at, window)


def _add_values(
    decoded: Decoded,
    index: int,
    ts: Any,
    values: dict[str, Any],
    received_at: datetime,
    window: Window,
) -> None:
    try:
        us = as_us(received_at) + index if ts is None else read_ts(ts)
    except ValueError as error:
        reason = "naive_timestamp" if "offset" in str(error) else "bad_timestamp"
        decoded.refused.append(Refusal(index, None, reason, str(error), _part(ts, values)))
        return
    if us > window.latest:
        decoded.refused.append(
            Refusal(
                index,
                None,
                "clock_ahead",
                f"ts {_show(str(ts))} lies in the future: check the clock",
                _part(ts, values),
            )
        )
        return
    if us < window.earliest:
        decoded.refused.append(
            Refusal(
                index,
                None,
                "too_old",
                f"ts {_show(str(ts))} lies before what is kept",
                _part(ts, values),
            )
        )
        return
    points = decoded.points
    for metric, value in values.items():
        kind = value.__class__
        if not metric or len(metric) > LONGEST_METRIC or "\0" in metric:
            reason, detail = "bad_metric_name", _BAD_NAME
        elif kind is float or kind is int:
            # An int may be longer than any double, which is why isfinite is not for all to ask.
            if math.isfinite(value) if kind is float else abs(value) <= MOST_EXACT_INTEGER:
                points.append(Point(metric, us, Kind.NUMBER, float(value)))
                continue
            reason, detail = "not_a_number", "no double holds this number exactly"
        elif kind is bool:
            points.append(Point(metric, us, Kind.BOOL, float(value)))
            continue
        elif kind is str:
            if len(value) <= LONGEST_TEXT and "\0" not in value:
                points.append(Point(metric, us, Kind.TEXT, value))
                continue
            reason, detail = "bad_text", _BAD_TEXT
        else:
            reason, detail = "unsupported_value", "a value is a number, bool or string"
        named = metric[:LONGEST_METRIC].replace("\0", "")
        decoded.refused.append(Refusal(index, named, reason, detail, _part(ts, {metric: value})))


def _show(text: str) -> str:
    """Return foreign text as it may stand in a detail: printable, and never long."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:LONGEST_SHOWN])


def _part(ts: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {"values": values} if ts is None else {"ts": ts, "values": values}


def read_ts(ts: Any) -> int:
    """Return a time as µs since 1970 UTC. Raises ValueError, saying what is wrong with it."""
    if ts.__class__ is int or ts.__class__ is float:
        if not -(2**53) < ts < 2**53:  # not so for NaN
            raise ValueError("`ts` is milliseconds since 1970, or RFC 3339")
        return int(ts * 1000) if ts.__class__ is int else round(ts * 1000)
    if ts.__class__ is str:
        try:
            moment = datetime.fromisoformat(ts)
        except ValueError:
            raise ValueError("`ts` is milliseconds since 1970, or RFC 3339") from None
        if moment.tzinfo is None:
            raise ValueError("`ts` has no offset: write 2026-01-31T12:00:00Z")
        return as_us(moment)
    raise ValueError("`ts` is milliseconds since 1970, or RFC 3339")
