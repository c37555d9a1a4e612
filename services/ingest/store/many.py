"""Many rows with one statement: the driver would send one a row, and triggers would run once a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession


async def insert_many(
    session: AsyncSession, table: str, rows: Sequence[Mapping[str, object]]
) -> None:
    """Insert rows that have the same columns. No text may hold U+0000."""
    if not rows:
        return
    columns = ", ".join(rows[0])
    await session.execute(
        text(
            f"INSERT INTO {table} ({columns}) SELECT {columns}"  # noqa: S608 - names from the code
            f" FROM jsonb_populate_recordset(NULL::{table}, cast(:rows AS jsonb))"
        ),
        {"rows": msgspec.json.encode([_as_json(row) for row in rows]).decode()},
    )


def _as_json(row: Mapping[str, object]) -> dict[str, Any]:
    return {
        name: f"\\x{value.hex()}" if isinstance(value, bytes) else value
        for name, value in row.items()
    }
