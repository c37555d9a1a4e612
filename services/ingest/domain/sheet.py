"""The registry as a sheet: one device a row, in CSV as spreadsheets read and write it."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.common.errors import AppError, Invalid, Malformed
from services.ingest.domain.attribute import merged
from services.ingest.domain.device import MOST_TAGS
from services.ingest.domain.payload import parse_json

MOST_ROWS = 10_000
COLUMNS = (
    "name",
    "type",
    "serial",
    "description",
    "profile",
    "group",
    "tags",
    "attributes",
)
"""What a sheet may have; the first two it must have. `group` is a path, `Site/Area/Line`; `tags` are
separated by `;`; `attributes` (of scope server) are a JSON object."""

WRITTEN_ONLY = ("id", "status", "last_seen_at", "protocol", "payload_format")
"""What an export has besides, and an import takes no notice of."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet would take for the beginning of a formula, and run; some take the full-width signs."""
_DELIMITERS = ",;\t"
"""Spreadsheets write the second one where the comma is the decimal sign."""
_LONGEST = {"name": 128, "type": 64, "serial": 128, "description": 1000, "profile": 128}


@dataclass(frozen=True, slots=True)
class SheetRow:
    """A device as a sheet describes it."""

    line: int
    name: str
    type: str
    serial: str | None
    description: str
    profile: str | None
    group: tuple[str, ...]
    tags: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(slots=True)
class Sheet:
    """What was read: good rows, and what is wrong with the others, by line."""

    rows: list[SheetRow] = field(default_factory=list)
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    """For each bad line the name that stands in it, and the reason."""


def read_sheet(content: bytes) -> Sheet:
    """Read a sheet. Raises Malformed or Invalid if it is none; what is wrong with a row is its own."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"a sheet is UTF-8: {error}") from error
    if "\0" in text:
        raise Malformed("a sheet has no NUL")
    # newline="": a line may end in \r, \n or both, and a cell may hold any of them.
    lines = io.StringIO(text, newline="")
    delimiter = max(_DELIMITERS, key=lines.readline().count)
    lines.seek(0)
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
    sheet = Sheet()
    try:
        header = reader.fieldnames or []
        unknown = [name for name in header if name not in (*COLUMNS, *WRITTEN_ONLY)]
        if unknown or "name" not in header or "type" not in header:
            raise Invalid(
                f"the first line names the columns: name and type, and of {', '.join(COLUMNS[2:])}"
                " those you like" + (f"; not {unknown[0][:64]!r}" if unknown else "")
            )
        if len(set(header)) != len(header):
            raise Invalid("a column is named twice")
        names: set[str] = set()
        serials: set[str] = set()
        for number, record in enumerate(reader):
            if number >= MOST_ROWS:
                raise Invalid(f"a sheet has {MOST_ROWS} rows at most")
            _take(sheet, reader.line_num, record, names, serials)
    except csv.Error as error:
        raise Malformed(f"behind line {reader.line_num}: {error}") from error
    return sheet


def _take(
    sheet: Sheet,
    line: int,
    record: Mapping[str | None, Any],
    names: set[str],
    serials: set[str],
) -> None:
    if None in record or None in record.values():
        sheet.errors[line] = ("", "has not as many columns as the first line")
        return
    fields = {str(name): unescaped(value.strip()) for name, value in record.items()}
    try:
        row = _read(line, fields)
        if row.name in names:
            raise Invalid("this name stands in the sheet twice")
        if row.serial is not None and row.serial in serials:
            raise Invalid("this serial number stands in the sheet twice")
    except AppError as error:
        sheet.errors[line] = (fields.get("name", "")[:128], error.detail)
        return
    names.add(row.name)
    if row.serial is not None:
        serials.add(row.serial)
    sheet.rows.append(row)


def _read(line: int, fields: Mapping[str, str]) -> SheetRow:
    for name, longest in _LONGEST.items():
        value = fields.get(name, "")
        if len(value) > longest or not (name == "description" or _is_one_line(value)):
            raise Invalid(f"{name}: at most {longest} characters, on one line")
    if not fields["name"] or not fields["type"]:
        raise Invalid("name and type are required")
    tags = tuple(dict.fromkeys(t.strip() for t in fields.get("tags", "").split(";") if t.strip()))
    if len(tags) > MOST_TAGS or any(len(tag) > 64 or not _is_one_line(tag) for tag in tags):
        raise Invalid(f"tags: at most {MOST_TAGS}, of at most 64 characters each")
    group = tuple(part.strip() for part in fields.get("group", "").split("/") if part.strip())
    if any(len(part) > 128 or not _is_one_line(part) for part in group):
        raise Invalid("group: a path of names, each of at most 128 characters")
    return SheetRow(
        line=line,
        name=fields["name"],
        type=fields["type"],
        serial=fields.get("serial") or None,
        description=fields.get("description", ""),
        profile=fields.get("profile") or None,
        group=group,
        tags=tags,
        attributes=_read_attributes(fields.get("attributes", "")),
    )


def _read_attributes(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        attributes = parse_json(text.encode())
    except Malformed as error:
        raise Invalid("attributes: not JSON") from error
    if not isinstance(attributes, dict):
        raise Invalid("attributes: not an object")
    return merged({}, attributes)


def _is_one_line(text: str) -> bool:
    return all(character >= " " for character in text)


def escaped(value: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula."""
    return "'" + value if value.lstrip("'").startswith(_FORMULA) else value


def unescaped(value: str) -> str:
    """Return the text of a cell that was escaped."""
    is_escaped = value.startswith("'") and value.lstrip("'").startswith(_FORMULA)
    return value[1:] if is_escaped else value


def written(rows: Iterable[Iterable[str]]) -> str:
    """Return rows of a sheet as CSV, none of which is a formula."""
    buffer = io.StringIO()
    csv.writer(buffer).writerows([escaped(cell) for cell in row] for row in rows)
    return buffer.getvalue()
