"""Which forms telemetry may be written in, and how to tell which one it is."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from libs.common.errors import UnsupportedMedia
from libs.common.historian.point import Quality
from services.ingest.domain.cbor import decode_cbor
from services.ingest.domain.delimited import decode_csv
from services.ingest.domain.influx import decode_influx
from services.ingest.domain.lines import ReadAddressed, for_one
from services.ingest.domain.ndjson import decode_ndjson
from services.ingest.domain.payload import Decoded, Read, Window, decode
from services.ingest.domain.profile import Profile
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.domain.senml import decode_senml_cbor, decode_senml_json
from services.ingest.domain.sparkplug_payload import decode_sparkplug
from services.ingest.domain.thingsboard import decode_thingsboard

ADDRESSED: Mapping[PayloadFormat, ReadAddressed] = {
    PayloadFormat.NDJSON: decode_ndjson,
    PayloadFormat.CSV: decode_csv,
    PayloadFormat.INFLUX: decode_influx,
}
"""Forms in which each line may be of another device."""

FORMATS: Mapping[PayloadFormat, Read] = {
    PayloadFormat.JSON: decode,
    PayloadFormat.CBOR: decode_cbor,
    PayloadFormat.SENML_JSON: decode_senml_json,
    PayloadFormat.SENML_CBOR: decode_senml_cbor,
    PayloadFormat.THINGSBOARD: decode_thingsboard,
    PayloadFormat.SPARKPLUG: decode_sparkplug,
    **{written: for_one(read) for written, read in ADDRESSED.items()},
}
"""The readers of what one device writes."""

CONTENT_TYPES: Mapping[str, PayloadFormat] = {
    "application/json": PayloadFormat.JSON,
    "application/cbor": PayloadFormat.CBOR,
    "application/senml+json": PayloadFormat.SENML_JSON,
    "application/senml+cbor": PayloadFormat.SENML_CBOR,
    "application/x-ndjson": PayloadFormat.NDJSON,
    "application/ndjson": PayloadFormat.NDJSON,
    "application/jsonl": PayloadFormat.NDJSON,
    "text/csv": PayloadFormat.CSV,
    "application/x-influx-line-protocol": PayloadFormat.INFLUX,
}

_decode_any = msgspec.json.Decoder().decode
_SENML_VALUES = frozenset({"v", "vs", "vb", "vd", "s", "bv", "bs"})


def format_of(content_type: str) -> PayloadFormat | None:
    """Return the form that a content type names, whatever its parameters; None if none we read."""
    return CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower())


def recognise(
    payload: bytes, named: PayloadFormat | None, profile: Profile | None
) -> tuple[PayloadFormat, Read]:
    """Return the form in which a device has written a payload, with its reader.

    Who sends it names the form; else the device's profile does; else it is told by its looks. Raises
    UnsupportedMedia if it is none that is read from bytes.
    """
    declared = profile.payload_format if profile is not None else None
    written = named or declared or sniff(payload)
    read = FORMATS.get(written)
    if read is None:
        raise UnsupportedMedia(f"{written} is no form of bytes, and is not taken here")
    return written, read


def sniff(payload: bytes) -> PayloadFormat:
    """Return the form that a payload is written in, by its first bytes; JSON if nobody can tell.

    For the first contact with a device whose profile names no form: ask once, and remember.
    """
    if payload[:3] == b"\xd9\xd9\xf7":
        payload = payload[3:]
    elif payload[:1] in (b"\x08", b"\x12", b"\x18"):
        # The first field of a protobuf message: timestamp, metrics or seq.
        return PayloadFormat.SPARKPLUG
    if payload and 0x80 <= payload[0] <= 0xBF:
        return PayloadFormat.SENML_CBOR if _has_labels(payload) else PayloadFormat.CBOR
    start = payload[:256].lstrip()
    if start.startswith(b"["):
        return PayloadFormat.SENML_JSON if _is_pack(payload) else PayloadFormat.JSON
    if start.startswith(b"{"):
        return PayloadFormat.NDJSON if _has_lines(payload) else PayloadFormat.JSON
    return _sniff_text(payload)


def _sniff_text(payload: bytes) -> PayloadFormat:
    first = next((line for line in payload[:4096].splitlines() if _tells(line)), b"")
    head, space, rest = first.partition(b" ")
    if b"," in first and b"=" not in first:
        return PayloadFormat.CSV
    if space and head and b"=" in rest and not head.startswith((b'"', b"{", b"[")):
        return PayloadFormat.INFLUX
    return PayloadFormat.JSON


def _tells(line: bytes) -> bool:
    stripped = line.strip()
    return bool(stripped) and not stripped.startswith(b"#")


def _has_labels(payload: bytes) -> bool:
    """Whether it is an array whose first map has a small integer, a label of SenML's, as its key."""
    if not 0x81 <= payload[0] <= 0x9F:
        return False
    at = {0x98: 2, 0x99: 3, 0x9A: 5}.get(payload[0], 1)
    head = payload[at : at + 2]
    return (
        len(head) == 2
        and (0xA1 <= head[0] <= 0xB7 or head[0] == 0xBF)
        and (head[1] <= 0x08 or 0x20 <= head[1] <= 0x25)
    )


def _is_pack(payload: bytes) -> bool:
    try:
        parsed = _decode_any(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    first = parsed[0] if parsed else None
    if not isinstance(first, dict) or "values" in first:
        return False
    names = [first[key] for key in ("bn", "n") if key in first]
    return all(isinstance(name, str) for name in names) and (
        "bn" in first or (bool(names) and not _SENML_VALUES.isdisjoint(first))
    )


def _has_lines(payload: bytes) -> bool:
    lines = (line.strip() for line in payload.split(b"\n", 64))
    told = [line for line in lines if line]
    return len(told) > 1 and all(line.startswith(b"{") for line in told[:2]) and _ends(told[0])


def _ends(line: bytes) -> bool:
    try:
        _decode_any(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return False
    return True


def with_defaults(read: Read, unit: str | None = None, quality: Quality | None = None) -> Read:
    """Return a reader that gives points the unit and the quality they do not have themselves."""
    if unit is None and quality is None:
        return read

    def read_with(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        decoded = read(payload, received_at, window)
        decoded.points = [
            point._replace(
                unit=unit if point.unit is None else point.unit,
                quality=quality
                if quality is not None and point.quality is Quality.GOOD
                else point.quality,
            )
            for point in decoded.points
        ]
        return decoded

    return read_with
