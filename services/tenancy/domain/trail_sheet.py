"""The trail as a sheet (CSV, RFC 4180), which people open with a spreadsheet."""

import csv
import io
from dataclasses import fields
from datetime import datetime

from services.tenancy.domain.audit import Entry, Link, canonical

_COLUMNS = tuple(field.name for field in fields(Entry))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula at the beginning of a cell, and would run."""


def _line(cells: list[str]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue()


HEADINGS = _line([*_COLUMNS, "prev_hash", "hash"])


def sheet_row(link: Link) -> str:
    """Return a link as a line of the sheet."""
    cells = [_cell(getattr(link.entry, name)) for name in _COLUMNS]
    return _line([*cells, link.prev_hash.hex(), link.hash.hex()])


def _cell(value: object) -> str:
    """Return a value as text; one that a spreadsheet would run begins with an apostrophe."""
    match value:
        case None:
            return ""
        case datetime():
            return value.isoformat()
        case dict():
            return canonical(value)
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
