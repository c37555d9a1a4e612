"""Telemetry as SenML (RFC 8428), in JSON or CBOR.

A record's name is the base name and its own. Of a name that begins with the device's URN (RFC 9039:
`urn:dev:mac:0024befffe804ff1_temp`) the metric is what follows; who speaks is known by the
credential, so records of a second URN in one pack are refused. A name that is the URN alone is the
metric `value`. Any other name is the metric as it stands.

A sum (`s`) becomes a metric of its own, `<metric>_sum`, without a unit: it is the record's unit
times seconds. Data (`vd`) becomes a text in base64url.
"""

import base64
import math
import re
from datetime import datetime
from typing import Any

from libs.common.errors import FieldError, Invalid
from services.ingest.domain.cbor import as_json, parse_cbor
from services.ingest.domain.payload import (
    LONGEST_UNIT,
    MOST_READINGS,
    Decoded,
    Window,
    as_us,
    parse_json,
)

NEWEST_VERSION = 10
WITH_SECONDARY_UNITS = 26
"""RFC 9100: version 10 and feature 4, the secondary units."""
LONGEST_NAME = 1_024
"""Characters of a base name, or of a name. Each record is named by both, and there are thousands."""
MOST_RELATIVE_S = 2**28
"""A smaller time is counted from now."""

UNITS = {
    "Cel": "degC",
    "C": "coulomb",
    "A": "ampere",
    "Ohm": "ohm",
    "g": "gram",
    "T": "tesla",
    "F": "farad",
    "H": "henry",
    "S": "siemens",
    "Gy": "gray",
    "Bq": "becquerel",
    "Sv": "sievert",
    "kat": "katal",
    "m2": "m**2",
    "m3": "m**3",
    "m/s2": "m/s**2",
    "m3/s": "m**3/s",
    "W/m2": "W/m**2",
    "cd/m2": "cd/m**2",
    "J/m": "J/m",
    "kg/m3": "kg/m**3",
    "/": "dimensionless",
    "count": "dimensionless",
    "%": "percent",
    "%RH": "percent",
    "%EL": "percent",
    "EL": "second",
    "1/min": "1/min",
    "beat/min": "1/min",
    "beats": "dimensionless",
    "lat": "degree",
    "lon": "degree",
    "deg": "degree",
    "pH": "pH_value",
    "B": "byte",
    "VA": "volt_ampere",
    "VAs": "volt_ampere*s",
    "var": "var",
    "vars": "var*s",
    "dB": "dimensionless",
    "dBW": "dBW",
    "Bspl": "dimensionless",
    "NTU": "NTU",
    "ug/m3": "ug/m**3",
    "/100": "percent",
    "/1000": "permille",
    "kVA": "kilovolt_ampere",
    "kvar": "kilovar",
    "Wh": "Wh",
    "KiB": "kibibyte",
    "GB": "gigabyte",
}
"""The registry's names that pint does not know, or knows otherwise."""

_LABELS = {
    -1: "bver",
    -2: "bn",
    -3: "bt",
    -4: "bu",
    -5: "bv",
    -6: "bs",
    0: "n",
    1: "u",
    2: "v",
    3: "vs",
    4: "vb",
    5: "s",
    6: "t",
    7: "ut",
    8: "vd",
}
_TEXTS = ("bn", "bu", "n", "u", "vs")
_NUMBERS = ("bt", "bv", "bs", "v", "s", "t", "ut")
_BASE = ("bn", "bt", "bu", "bv", "bs", "bver")
_VALUES = ("v", "vs", "vb", "vd")
_URN = re.compile(r"urn:dev:[a-z0-9]+:[^:/_;]+[:/_;]?")


def decode_senml_json(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read a SenML pack in JSON. Raises Malformed if it is not JSON, Invalid if it is no pack."""
    return _decode(parse_json(payload), received_at, window)


def decode_senml_cbor(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read a SenML pack in CBOR. Raises Malformed if it is not CBOR, Invalid if it is no pack."""
    parsed = parse_cbor(payload)
    if isinstance(parsed, list | tuple):
        parsed = [_named(record) for record in parsed]
    return _decode(parsed, received_at, window)


def _named(record: Any) -> Any:
    """Return a record with its fields by name; labels are integers in CBOR."""
    if not isinstance(record, dict):
        return as_json(record)
    named = {_LABELS.get(label, label): value for label, value in record.items()}
    data = named.get("vd")
    if isinstance(data, bytes):
        named["vd"] = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    return as_json(named)


def _decode(pack: Any, received_at: datetime, window: Window) -> Decoded:
    if not isinstance(pack, list):
        raise Invalid(
            "a SenML pack is an array of records", errors=[FieldError("#", "not an array")]
        )
    if len(pack) > MOST_READINGS:
        raise Invalid(
            f"at most {MOST_READINGS} records in one pack",
            errors=[FieldError("#", f"holds {len(pack)} records")],
        )
    decoded = Decoded(as_us(received_at))
    base = _Base()
    for index, record in enumerate(pack):
        if isinstance(record, dict):
            base.take_record(decoded, index, record, window)
        else:
            decoded.refuse(index, None, "malformed", "a record is an object", record)
        decoded.ends.append(len(decoded.points))
    return decoded


class _Base:
    """What records set for those that follow."""

    def __init__(self) -> None:
        self.name = ""
        self.time: float = 0
        self.unit: str | None = None
        self.value: float | None = None
        self.sum: float | None = None
        self.urn: str | None = None
        self.is_lost = False
        """Whether a record could not be read that set something for all that follow."""

    def take_record(
        self, decoded: Decoded, index: int, record: dict[str, Any], window: Window
    ) -> None:
        """Add what a resolved record says, or refuse it with its reason."""
        fault = _fault(record)
        if fault is None and self.is_lost:
            fault = "base_refused", "what an earlier record set for this one could not be read"
        if fault is not None:
            decoded.refuse(index, None, *fault, record)
            self.is_lost = self.is_lost or any(name in record for name in _BASE)
            return
        self._learn(record)
        held = [name for name in _VALUES if name in record]
        if not held and "s" not in record:
            if record.keys() & {"n", "u", "t", "ut"}:
                decoded.refuse(index, None, "no_value", "a record has a value or a sum", record)
            return
        if len(held) > 1:
            decoded.refuse(index, None, "malformed", "a record has one value", record)
            return
        metric = self._metric(record.get("n", ""))
        if metric is None:
            detail = f"a device speaks for itself alone: the pack is of {self.urn}"
            decoded.refuse(index, None, "foreign_sender", detail, record)
            return
        ts = self._ts(decoded, index, record)
        disbelief = window.disbelief(ts, ts / 1000) if ts is not None else _BAD_TIME
        if ts is None or disbelief is not None:
            decoded.refuse(index, metric, *(disbelief or _BAD_TIME), record)
            return
        if held:
            value = record[held[0]]
            if held[0] == "v" and self.value is not None:
                value += self.value
            unit: str | None = record.get("u", self.unit)
            known = None if unit is None else UNITS.get(unit, unit)
            decoded.add(index, metric, ts, value, unit=known)
        if "s" in record:
            decoded.add(index, f"{metric}_sum", ts, record["s"] + (self.sum or 0))

    def _learn(self, record: dict[str, Any]) -> None:
        self.name = record.get("bn", self.name)
        self.time = record.get("bt", self.time)
        self.unit = record.get("bu", self.unit)
        self.value = record.get("bv", self.value)
        self.sum = record.get("bs", self.sum)

    def _metric(self, name: str) -> str | None:
        """Return the metric; None if the name is of another device than the pack's first."""
        full = self.name + name
        found = _URN.match(full)
        if found is None:
            return full
        urn = found[0].rstrip(":/_;")
        self.urn = self.urn or urn
        if urn != self.urn:
            return None
        return full[found.end() :] or "value"

    def _ts(self, decoded: Decoded, index: int, record: dict[str, Any]) -> int | None:
        seconds: float = self.time + record.get("t", 0)
        if not -(2**53) < seconds * 1_000_000 < 2**53:  # not so for NaN
            return None
        us: int = round(seconds * 1_000_000)
        return us if seconds >= MOST_RELATIVE_S else decoded.received_at + us + index


_BAD_TIME = ("bad_timestamp", "`t` and `bt` are seconds, since 1970 or from now")


def _fault(record: dict[str, Any]) -> tuple[str, str] | None:
    """Return reason and detail if a record must not be read."""
    unknown = [name for name in record if name.endswith("_")]
    if unknown:
        # RFC 8428, section 4.4: who does not understand such a field must not use the record.
        return "unknown_field", f"must be understood and is not: {', '.join(unknown)}"
    for name in _TEXTS:
        if name in record and not isinstance(record[name], str):
            return "malformed", f"`{name}` is a text"
    for name in _NUMBERS:
        if name in record and not _is_number(record[name]):
            return "not_a_number", f"`{name}` is a number that a double holds"
    if "vb" in record and not isinstance(record["vb"], bool):
        return "malformed", "`vb` is true or false"
    if "vd" in record and not isinstance(record["vd"], str):
        return "malformed", "`vd` is base64url"
    if any(len(record.get(name, "")) > LONGEST_UNIT for name in ("u", "bu")):
        return "unknown_unit", "no unit has so long a name"
    if any(len(record.get(name, "")) > LONGEST_NAME for name in ("bn", "n")):
        return "bad_metric_name", f"a name has at most {LONGEST_NAME} characters"
    version = record.get("bver", NEWEST_VERSION)
    if version.__class__ is not int or not (
        0 < version <= NEWEST_VERSION or version == WITH_SECONDARY_UNITS
    ):
        return "unknown_version", "SenML up to version 10 is understood, and secondary units"
    return None


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and abs(value) <= 2**53
