"""The registry as a sheet: what spreadsheets write is read, what they would run is not written."""

import csv
import io

import pytest

from libs.common.errors import Malformed
from services.ingest.domain.sheet import escaped, read_sheet, unescaped, written


def names(content: str | bytes) -> list[str]:
    """Return the names of the good rows."""
    sheet = read_sheet(content if isinstance(content, bytes) else content.encode())
    return [row.name for row in sheet.rows]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffname,type\r\nPump 1,pump\r\n",
        "name;type\nPump 1;pump\n",
        "name\ttype\nPump 1\tpump\n",
        "name,type\rPump 1,pump\r",
        'type,name,description\npump,Pump 1,"two\r\nlines; and, all"\n',
    ],
    ids=["bom", "semicolons", "tabs", "old-mac", "lines-in-a-cell"],
)
def test_what_any_spreadsheet_writes_is_read(content: str) -> None:
    assert names(content) == ["Pump 1"]


@pytest.mark.parametrize(
    "attributes",
    ['{"f": NaN}', '{"f": 1e999}', r'{"f": "\ud800"}', r'{"f": "\u0000"}', '{"f": ' + "[" * 5_000],
    ids=["nan", "infinite", "half-a-pair", "nul", "deep"],
)
def test_attributes_that_cannot_be_kept_spoil_their_own_row_alone(attributes: str) -> None:
    rows = [["name", "type", "attributes"], ["bad", "pump", attributes], ["good", "pump", ""]]
    content = io.StringIO()
    csv.writer(content).writerows(rows)
    sheet = read_sheet(content.getvalue().encode())
    assert [row.name for row in sheet.rows] == ["good"]
    assert sheet.errors[2][1]


def test_a_row_of_a_million_cells_spoils_itself_alone() -> None:
    sheet = read_sheet(b"name,type\nwide,pump" + b",x" * 1_000_000 + b"\ngood,pump\n")
    assert [row.name for row in sheet.rows] == ["good"]
    assert list(sheet.errors) == [2]


def test_a_cell_beyond_all_measure_is_named_by_its_line() -> None:
    with pytest.raises(Malformed, match="behind line 1:"):
        read_sheet(b"name,type\n" + b"x" * 200_000 + b",pump\n")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "'=", "''@"])
def test_no_cell_is_a_formula_and_each_comes_back_as_it_was(first: str) -> None:
    value = f"{first}cmd|'/c calc'!A0"
    ((cell,),) = csv.reader(io.StringIO(written([[value]]), newline=""))
    assert cell.startswith("'")
    assert unescaped(cell) == value


@pytest.mark.parametrize("value", ["", "'", "it's", "'quoted'", "a=b"])
def test_what_is_no_formula_stands_as_it_is(value: str) -> None:
    assert escaped(value) == unescaped(value) == value
