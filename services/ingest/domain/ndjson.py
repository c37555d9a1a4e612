"""Telemetry as lines of JSON: a reading a line, as JSON has it. A bad line spoils no other.

Who sends for several devices says in each line whose it is: `"device_id"`.
"""

from datetime import datetime

from libs.common.errors import FieldError, Invalid, Malformed
from services.ingest.domain.lines import Addressed, Lines
from services.ingest.domain.payload import (
    MOST_READINGS,
    Window,
    add_reading,
    parse_json,
    show,
)


def decode_ndjson(payload: bytes, received_at: datetime, window: Window) -> Addressed:
    """Read a payload of lines, each of its device. Raises Invalid if there are too many."""
    lines = Lines(received_at)
    for number, line in enumerate(payload.split(b"\n"), start=1):
        if not line or line.isspace():
            continue
        index = lines.next_index()
        if index >= MOST_READINGS:
            raise Invalid(
                f"at most {MOST_READINGS} readings in one message",
                errors=[FieldError("#", "holds more lines")],
            )
        text = line.decode(errors="replace")
        try:
            reading = parse_json(line)
        except Malformed as error:
            lines.refuse(None, index, "malformed", f"line {number}: {error.detail}", text)
            continue
        device = reading.pop("device_id", None) if isinstance(reading, dict) else None
        if device is not None and not isinstance(device, str):
            lines.refuse(None, index, "malformed", f"line {number}: whose is {show(text)}", text)
            continue
        decoded = lines.of(device)
        before = len(decoded.refused)
        add_reading(decoded, index, reading, window)
        lines.end(device, index)
        lines.number(decoded, before, number)
    return lines.addressed
