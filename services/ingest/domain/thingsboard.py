"""Telemetry as devices made for ThingsBoard write it."""

from datetime import datetime
from typing import Any

import msgspec

from services.ingest.domain.payload import Decoded, Window, decode, decode_readings, parse_json

_encode = msgspec.json.Encoder().encode


def decode_thingsboard(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read `{"temp": 21.5}`, `{"ts": …, "values": {…}}`, or an array of these, as `decode` does.

    A value that is an object or an array is stored as the text of its JSON, as ThingsBoard does.
    Raises as `decode`.
    """
    decoded = decode(payload, received_at, window)
    if not any(refusal.reason == "unsupported_value" for refusal in decoded.refused):
        return decoded
    parsed = parse_json(payload)
    readings = parsed if isinstance(parsed, list) else [parsed]
    return decode_readings([_flattened(reading) for reading in readings], received_at, window)


def _flattened(reading: Any) -> Any:
    if not isinstance(reading, dict):
        return reading
    if isinstance(reading.get("values"), dict):
        return {**reading, "values": _texts(reading["values"])}
    return reading if "values" in reading or "ts" in reading else _texts(reading)


def _texts(values: dict[str, Any]) -> dict[str, Any]:
    return {
        metric: _encode(value).decode() if isinstance(value, dict | list) else value
        for metric, value in values.items()
    }
