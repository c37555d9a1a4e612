"""Telemetry as devices write it, read into points. Pure: the time of receipt is an argument.

Here is JSON, and what all formats have in common; the others stand in modules beside, and
`formats` finds the one that is meant.

Taken are `{"temp": 21.5}`, `{"values": {"temp": 21.5}}`, `{"ts": …, "values": {…}}` and arrays of
these. `ts` is RFC 3339 with an offset, or milliseconds since 1970. A point without a `ts` of its
own has the time of receipt, each reading of an array 1 µs after the one before. Beside `values` a
reading may have `quality` ("good", "uncertain", "bad"), `units` ({"temp": "degF"}) and `seq`, a
counter of the device's. A bad reading's value may be null. What is wrong with one point is said of
that point; the others stand.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate, compress
from typing import Any, NamedTuple

import msgspec

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.ledger import missing_before

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_METRIC = 128
LONGEST_TEXT = 4096
LONGEST_SHOWN = 200
MOST_READINGS = 10_000
MOST_POINTS = 50_000
"""Of one message; those refused count too. More would hold up all other devices."""
LONGEST_UNIT = 64
MOST_EXACT_INTEGER = 2**53
NO_VALUE = math.nan
"""What stands for the value of a point of bad quality that has none."""

BAD_NAME = f"a metric's name has 1 to {LONGEST_METRIC} characters, all of them printable"
_BAD_TEXT = f"a text has at most {LONGEST_TEXT} characters and no NUL"


class Point(NamedTuple):
    """One measured value: `ts` in µs since 1970 UTC; bools are numbers of kind BOOL.

    `unit` is as the device wrote it; None if it did not.
    """

    metric: str
    ts: int
    kind: Kind
    value: float | str
    quality: Quality = Quality.GOOD
    unit: str | None = None


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
    indexes: list[int] | None = None
    """The number of each reading, where these are not simply 0, 1, 2…: some are another device's,
    or could not be read."""
    seq: int | None = None
    """The device's own counter with the last reading that has one."""
    first_seq: int | None = None
    """The same with the first reading that has one: what is missing between the two is in `gaps`."""
    gaps: int = 0
    """How many messages of the device are known to be missing, by its own count, up to this one's
    end: where its protocol counts, or within a list of readings that have a `seq`."""
    is_admitted: bool = False
    """Whether its points are counted already against what the tenant may send."""

    def reading_of(self, position: int) -> int:
        """Return which reading the point at a position of `points` came from, counted from 0."""
        reading = bisect_right(self.ends, position)
        return reading if self.indexes is None else self.indexes[reading]

    def refuse(
        self, index: int, metric: str | None, reason: str, detail: str, part: object
    ) -> None:
        """Note why a point, or a reading, is not taken; any text of the device's is made fit to show."""
        named = None if metric is None else metric[:LONGEST_METRIC].replace("\0", "")
        self.refused.append(Refusal(index, named, reason, show(detail), part))

    def add(
        self,
        index: int,
        metric: str,
        ts: int,
        value: object,
        quality: Quality = Quality.GOOD,
        unit: str | None = None,
    ) -> None:
        """Take a value as a point, or refuse it: a number, bool or string of a size that is kept.

        Of bad quality it may be None, and need not be finite. Time and unit are judged elsewhere.
        """
        fault = _fault(metric, value)
        if fault is None:
            kind = _KINDS[value.__class__]
            held = value if kind is Kind.TEXT else float(value)  # type: ignore[arg-type]  # a number or bool: nothing else has no fault
            self.points.append(Point(metric, ts, kind, held, quality, unit))  # type: ignore[arg-type]  # a str or float, by its kind
        elif fault[0] in _NOTHING_USABLE and quality is Quality.BAD and _is_nothing(value):
            self.points.append(Point(metric, ts, Kind.NUMBER, NO_VALUE, quality, unit))
        else:
            shown = None if _is_nothing(value) else value
            self.refuse(index, metric, *fault, as_reading(metric, ts, shown, quality, unit))

    def copy(self) -> "Decoded":
        """Return the same, which can be made to fit without changing this one."""
        # Not `dataclasses.replace`, which takes four times as long: this is done for each message.
        return Decoded(
            self.received_at,
            list(self.points),
            list(self.refused),
            self.ends,
            self.indexes,
            self.seq,
            self.first_seq,
            self.gaps,
        )

    @property
    def size(self) -> int:
        """How many points it is in all, those refused among them."""
        return len(self.points) + len(self.refused)

    def count(self, seq: int) -> None:
        """Note the device's counter with one reading; a smaller one than before begins anew."""
        if self.seq is None:
            self.first_seq = seq
        self.gaps += missing_before(seq, self.seq)
        self.seq = seq

    def drop(self, metrics: Set[str]) -> None:
        """Forget the points of these metrics."""
        self.keep([metric not in metrics for metric, *_ in self.points])

    def keep(self, kept: Sequence[bool]) -> None:
        """Forget the points at whose position stands False."""
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

    def disbelief(self, ts: int, written: object) -> tuple[str, str] | None:
        """Return reason and detail if a time is not believed; `written` is how the device put it."""
        if ts > self.latest:
            hint = self._hint(ts)
            detail = f"ts {show(str(written))} lies in the future"
            return "clock_ahead", f"{detail}: {hint or 'check the clock'}"
        if ts < self.earliest:
            hint = self._hint(ts)
            detail = f"ts {show(str(written))} lies before what is kept"
            return "too_old", f"{detail}: {hint}" if hint else detail
        return None

    def _hint(self, ts: int) -> str | None:
        """Return what was likely meant, if it is a time when counted in another unit."""
        for power in (3, 6, 9):
            for meant, how in ((ts * 10**power, "little"), (ts // 10**power, "much")):
                if self.earliest <= meant <= self.latest:
                    return f"it is 10^{power} times too {how}, count it in another unit"
        return None


Read = Callable[[bytes, datetime, Window], Decoded]
"""Reads a payload received at a time. Raises Malformed or Invalid; what is wrong with single points
is in what it returns."""

_KINDS = {float: Kind.NUMBER, int: Kind.NUMBER, bool: Kind.BOOL, str: Kind.TEXT}
_NOTHING_USABLE = frozenset({"unsupported_value", "not_a_number"})
_QUALITIES = {quality.name.lower(): quality for quality in Quality}
_FIELDS = frozenset({"ts", "values", "quality", "units", "seq"})


class _Reading(msgspec.Struct, forbid_unknown_fields=True):
    # An int is one: as a float it would be rounded, and none here would know.
    values: dict[str, int | float | bool | str]
    ts: int | float | str | None = None
    quality: str | None = None
    units: dict[str, str] | None = None
    seq: int | None = None


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
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        add_parsed(decoded, parse_json(payload), window)
        return decoded
    if reading.quality is None and reading.units is None and reading.seq is None:
        _add_values(decoded, 0, reading.ts, reading.values, window)
    else:
        add_reading(decoded, 0, _fields_of(reading), window)
    return decoded


def decode_readings(readings: list[Any], received_at: datetime, window: Window) -> Decoded:
    """Read readings that are parsed already, as `decode`; `index` counts within this list."""
    decoded = Decoded(as_us(received_at))
    for index, reading in enumerate(readings):
        add_reading(decoded, index, reading, window)
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


def add_parsed(decoded: Decoded, parsed: Any, window: Window) -> None:
    """Add a reading, or a list of them, that is parsed already. Raises Invalid if it is neither."""
    if isinstance(parsed, dict):
        add_reading(decoded, 0, parsed, window)
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
        add_reading(decoded, index, reading, window)
        decoded.ends.append(len(decoded.points))
        check_size(decoded.size)


def check_size(points: int) -> None:
    """Raise Invalid if a message holds more points than are taken at once."""
    if points > MOST_POINTS:
        raise Invalid(
            f"at most {MOST_POINTS} points in one message",
            errors=[FieldError("#", "holds more points")],
        )


def add_reading(decoded: Decoded, index: int, reading: Any, window: Window) -> None:
    """Add a reading that is parsed already, or refuse it."""
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
        _add_values(decoded, index, None, reading, window)
        return
    if len(reading) > 1 and not _FIELDS.issuperset(reading):
        named = ", ".join(sorted(reading.keys() - _FIELDS))
        decoded.refuse(index, None, "unknown_field", f"not understood: {named}", reading)
        return
    if len(reading) > 1:
        fault = fault_beside(reading)
        if fault is not None:
            decoded.refuse(index, None, *fault[1:], reading)
            return
        if reading.get("seq") is not None:
            decoded.count(reading["seq"])
        if reading.get("quality") is not None or reading.get("units") is not None:
            _add_qualified(decoded, index, reading, window)
            return
    _add_values(decoded, index, reading.get("ts"), values, window)


def fault_beside(reading: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return what is wrong beside a reading's time and values: the field, the reason, the detail."""
    seq, quality, units = reading.get("seq"), reading.get("quality"), reading.get("units")
    if seq is not None and (seq.__class__ is not int or not 0 <= seq <= MOST_EXACT_INTEGER):
        return "seq", "malformed", "`seq` is a whole number from 0 on"
    if quality is not None and (quality.__class__ is not str or quality not in _QUALITIES):
        return "quality", "bad_quality", f"`quality` is one of {', '.join(_QUALITIES)}"
    if units is not None and not _are_units(units):
        return "units", "malformed", "`units` is an object: of a metric its unit"
    return None


def _add_qualified(decoded: Decoded, index: int, reading: dict[str, Any], window: Window) -> None:
    quality = _QUALITIES[reading.get("quality") or "good"]
    units = reading.get("units") or {}
    check_size(len(reading["values"]))
    ts = _placed(decoded, index, reading.get("ts"), window)
    if isinstance(ts, tuple):
        decoded.refuse(index, None, *ts, reading)
        return
    for metric, value in reading["values"].items():
        decoded.add(index, metric, ts, value, quality, units.get(metric))


def _are_units(units: object) -> bool:
    return isinstance(units, dict) and all(
        isinstance(unit, str) and 0 < len(unit) <= LONGEST_UNIT and unit.isprintable()
        for unit in units.values()
    )


def _fields_of(reading: _Reading) -> dict[str, Any]:
    fields = {
        "ts": reading.ts,
        "values": reading.values,
        "quality": reading.quality,
        "units": reading.units,
        "seq": reading.seq,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _placed(decoded: Decoded, index: int, ts: Any, window: Window) -> int | tuple[str, str]:
    """Return a reading's time in µs since 1970 UTC, or reason and detail if that is none."""
    try:
        us = decoded.received_at + index if ts is None else read_ts(ts)
    except ValueError as error:
        return "naive_timestamp" if "offset" in str(error) else "bad_timestamp", str(error)
    if window.earliest <= us <= window.latest:
        return us
    return window.disbelief(us, us / 1000 if ts is None else ts) or us


def _add_values(
    decoded: Decoded,
    index: int,
    ts: Any,
    values: dict[str, Any],
    window: Window,
) -> None:
    us = _placed(decoded, index, ts, window)
    if isinstance(us, tuple):
        decoded.refuse(index, None, *us, _part(ts, values))
        return
    if len(values) > MOST_POINTS:
        check_size(len(values))
    points = decoded.points
    for metric, value in values.items():
        kind = value.__class__
        if not metric or len(metric) > LONGEST_METRIC or "\0" in metric:
            pass
        elif kind is float or kind is int:
            # An int may be longer than any double, which is why isfinite is not for all to ask.
            if math.isfinite(value) if kind is float else abs(value) <= MOST_EXACT_INTEGER:
                points.append(Point(metric, us, Kind.NUMBER, float(value)))
                continue
        elif kind is bool:
            points.append(Point(metric, us, Kind.BOOL, float(value)))
            continue
        elif kind is str and len(value) <= LONGEST_TEXT and "\0" not in value:
            points.append(Point(metric, us, Kind.TEXT, value))
            continue
        fault = _fault(metric, value)
        assert fault is not None
        decoded.refuse(index, metric, *fault, _part(ts, {metric: value}))


def _fault(metric: str, value: object) -> tuple[str, str] | None:
    """Return reason and detail if this is no point; the loop above knows the same, for speed."""
    if not metric or len(metric) > LONGEST_METRIC or "\0" in metric:
        return "bad_metric_name", BAD_NAME
    if isinstance(value, bool):
        return None
    if isinstance(value, float | int):
        is_exact = (
            math.isfinite(value) if isinstance(value, float) else abs(value) <= MOST_EXACT_INTEGER
        )
        return None if is_exact else ("not_a_number", "no double holds this number exactly")
    if isinstance(value, str):
        is_kept = len(value) <= LONGEST_TEXT and "\0" not in value
        return None if is_kept else ("bad_text", _BAD_TEXT)
    return "unsupported_value", "a value is a number, bool or string"


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def show(text: str) -> str:
    """Return foreign text as it may stand in a detail: printable, and never long."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:LONGEST_SHOWN])


def as_reading(
    metric: str, ts: int, value: object, quality: Quality = Quality.GOOD, unit: str | None = None
) -> dict[str, object]:
    """Return a point as the reading that it would be in JSON."""
    reading: dict[str, object] = {"ts": ts / 1000, "values": {metric: value}}
    if quality is not Quality.GOOD:
        reading["quality"] = quality.name.lower()
    if unit is not None:
        reading["units"] = {metric: unit}
    return reading


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
