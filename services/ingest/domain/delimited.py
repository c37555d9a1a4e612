"""Telemetry as CSV (RFC 4180), with a header. A bad row spoils no other.

Long: `ts,metric,value` and, if wanted, `unit` and `quality`: a point a row. Wide: `ts` and a column
for each metric: a reading a row, whose empty cells say nothing. Both may have `device_id`, for
those who send for several devices, and `quality`. Where semicolons part the headings they part the cells,
too, as spreadsheets have it where the comma is decimal; a decimal comma is read in either. `ts` is RFC 3339 or milliseconds since 1970; empty
or absent it is the time of receipt. A value is a number, `true`, `false`, or else a text. A number has
400 characters at most.
"""

import csv
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from io import StringIO

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.historian.point import Quality
from services.ingest.domain.lines import Addressed, Lines
from services.ingest.domain.payload import (
    LONGEST_UNIT,
    MOST_READINGS,
    Decoded,
    Window,
    read_ts,
    show,
)

MOST_COLUMNS = 1_000
LONGEST_HEADER = 131_072

_ABOUT = frozenset({"ts", "device_id", "quality"})
"""Columns that are no metrics, of a wide table."""
_LONG = frozenset({"ts", "device_id", "quality", "metric", "value", "unit"})
LONGEST_NUMBER = 400
"""Characters of a number: `%f` makes 316 of the largest double."""
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?\Z", re.ASCII)
"""Of each run of digits there is one reading: else a long one that is no number is tried in n² ways."""
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?\Z", re.ASCII)
_INTEGER = re.compile(r"[-+]?\d+\Z", re.ASCII)
_NO_NUMBERS = frozenset({"nan", "inf", "-inf", "+inf", "infinity", "-infinity", "+infinity"})
_QUALITIES = {"": Quality.GOOD, **{quality.name.lower(): quality for quality in Quality}}

Row = dict[str, str]


def decode_csv(payload: bytes, received_at: datetime, window: Window) -> Addressed:
    """Read a table, each row of its device.

    Raises Malformed if it is not UTF-8 or has no header, Invalid if the header or the number of
    rows is not as it must be.
    """
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"not CSV in UTF-8: byte {error.start} is wrong") from error
    delimiter = _delimiter(text)
    rows = csv.reader(StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header = _header(rows)
    add = _add_long if "metric" in header and "value" in header else _add_wide
    _check(header, is_long=add is _add_long)
    lines = Lines(received_at)
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return lines.addressed
        except csv.Error as error:
            lines.refuse(
                None, lines.next_index(), "malformed", f"line {rows.line_num}: {error}", None
            )
            continue
        if not cells:
            continue
        _take(lines, header, cells, rows.line_num, window, add)


def _delimiter(text: str) -> str:
    """Return the semicolon where the header has it and no comma: where commas are decimal."""
    first = text[: LONGEST_HEADER + 1].partition("\n")[0]
    return ";" if ";" in first and "," not in first else ","


def _header(rows: Iterator[list[str]]) -> list[str]:
    try:
        return [name.strip() for name in next(rows)]
    except StopIteration:
        raise Malformed("not CSV: there is no header") from None
    except csv.Error as error:
        raise Malformed(f"not CSV: line 1: {error}") from error


def _check(header: list[str], *, is_long: bool) -> None:
    faults = []
    if len(header) > MOST_COLUMNS:
        faults.append(f"more than {MOST_COLUMNS} columns")
    elif len(set(header)) != len(header):
        faults.append("two columns have the same name")
    if is_long:
        faults += [f"not understood: {show(name)}" for name in header if name not in _LONG]
    elif not set(header) - _ABOUT:
        faults.append("no column is a metric")
    elif not set(header) & _ABOUT:
        faults.append("a header has `ts`, or `metric` and `value`")
    if faults:
        raise Invalid(
            "the header is `ts,metric,value` or `ts` and metrics",
            errors=[FieldError("#/0", fault) for fault in faults[:20]],
        )


def _take(
    lines: Lines,
    header: list[str],
    cells: list[str],
    line: int,
    window: Window,
    add: Callable[[Decoded, int, Row, int, Quality], None],
) -> None:
    index = lines.next_index()
    if index >= MOST_READINGS:
        raise Invalid(
            f"at most {MOST_READINGS} readings in one message",
            errors=[FieldError("#", "holds more rows")],
        )
    if len(cells) != len(header):
        detail = f"line {line}: {len(cells)} cells under {len(header)} headings"
        lines.refuse(None, index, "malformed", detail, ",".join(cells))
        return
    row = dict(zip(header, cells, strict=True))
    device = row.get("device_id") or None
    decoded = lines.of(device)
    before = len(decoded.refused)
    _add_row(decoded, index, row, window, add)
    lines.end(device, index)
    lines.number(decoded, before, line)


def _add_row(
    decoded: Decoded,
    index: int,
    row: Row,
    window: Window,
    add: Callable[[Decoded, int, Row, int, Quality], None],
) -> None:
    quality = _QUALITIES.get(row.get("quality", "").strip().lower())
    if quality is None:
        decoded.refuse(index, None, "bad_quality", "good, uncertain or bad", row)
        return
    written = row.get("ts", "").strip()
    try:
        ts = decoded.received_at + index if not written else read_ts(_time(written))
    except ValueError as error:
        reason = "naive_timestamp" if "offset" in str(error) else "bad_timestamp"
        decoded.refuse(index, None, reason, str(error), row)
        return
    disbelief = window.disbelief(ts, written)
    if disbelief is not None:
        decoded.refuse(index, None, *disbelief, row)
        return
    add(decoded, index, row, ts, quality)


def _add_long(decoded: Decoded, index: int, row: Row, ts: int, quality: Quality) -> None:
    unit = row.get("unit", "").strip() or None
    if unit is not None and len(unit) > LONGEST_UNIT:
        decoded.refuse(index, row["metric"], "unknown_unit", "no unit has so long a name", row)
        return
    decoded.add(index, row["metric"], ts, _value(row["value"]), quality, unit)


def _add_wide(decoded: Decoded, index: int, row: Row, ts: int, quality: Quality) -> None:
    for metric, cell in row.items():
        if metric not in _ABOUT and cell:
            decoded.add(index, metric, ts, _value(cell), quality)


def _time(written: str) -> str | float:
    is_number = len(written) <= LONGEST_NUMBER and _NUMBER.match(written)
    return float(written) if is_number else written


def _value(cell: str) -> float | bool | str | None:
    """Return what a cell holds; spaces around a number or bool are none of it."""
    if not cell:
        return None
    stripped = cell.strip()
    if len(stripped) > LONGEST_NUMBER:
        return cell
    if _INTEGER.match(stripped):
        return int(stripped)  # as such it is refused where no double holds it
    if _NUMBER.match(stripped):
        return float(stripped)
    if _DECIMAL_COMMA.match(stripped):
        return float(stripped.replace(",", "."))
    lowered = stripped.lower()
    if lowered in _NO_NUMBERS:
        return float(lowered)
    return {"true": True, "false": False}.get(lowered, cell)
