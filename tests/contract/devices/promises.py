"""The table of promises in ingest's README of protocols, read."""

import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from tests.contract.devices.driver import DeviceDriver, Promise

README = Path(__file__).parents[3] / "services" / "ingest" / "protocols" / "README.md"


def promises() -> dict[str, Mapping[str, str]]:
    """Return what each column of the table says, by the row's first words."""
    lines = iter(README.read_text().splitlines())
    heading = next(line for line in lines if line.startswith("| promise |"))
    table: dict[str, dict[str, str]] = {name: {} for name in _cells(heading)[1:]}
    next(lines)
    for line in takewhile(lambda line: line.startswith("|"), lines):
        promise, *cells = _cells(line)
        for name, cell in zip(table, cells, strict=True):
            table[name][promise] = cell
    return dict(table)


def said_of(kind: type[DeviceDriver], promise: Promise) -> str:
    """Return what the protocol's column says of a promise."""
    columns = [column for name, column in promises().items() if name.startswith(kind.column)]
    assert len(columns) == 1, f"not one column begins with {kind.column!r}, but {len(columns)}"
    return columns[0].get(promise, "")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
