"""JSON that is kept as it is: which can be, and is read alike by everybody."""

import math

from services.ingest.domain.payload import MOST_EXACT_INTEGER

MOST_LEVELS = 32


def fault_of(value: object, levels: int = MOST_LEVELS) -> str | None:
    """Return what is wrong with a parsed document, if anything."""
    if isinstance(value, str):
        return "holds U+0000" if "\0" in value else None
    if isinstance(value, int):
        return "holds a number beyond ±2^53" if abs(value) > MOST_EXACT_INTEGER else None
    if isinstance(value, float):
        return None if math.isfinite(value) else "holds a number that is not finite"
    if not isinstance(value, dict | list):
        return None
    if levels == 0:
        return f"is nested deeper than {MOST_LEVELS} levels"
    inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return next((fault for one in inner if (fault := fault_of(one, levels - 1))), None)
