"""OPC UA's values as points, and back. Pure.

A value keeps its quality: the two upper bits of its StatusCode are good, uncertain or bad. Its time
is the one its source gave it, else the server's. What is no scalar is refused, and said so.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from asyncua import ua

from libs.common.historian.point import Kind, Quality
from services.ingest.domain.device import Source
from services.ingest.domain.payload import NO_VALUE, Decoded, Point, as_us

OVERFLOW = 0x480
"""Of a StatusCode: it is that of a data value (InfoType 01), and values before it were dropped."""

_INTEGERS = {
    ua.VariantType.SByte: (-(2**7), 2**7 - 1),
    ua.VariantType.Byte: (0, 2**8 - 1),
    ua.VariantType.Int16: (-(2**15), 2**15 - 1),
    ua.VariantType.UInt16: (0, 2**16 - 1),
    ua.VariantType.Int32: (-(2**31), 2**31 - 1),
    ua.VariantType.UInt32: (0, 2**32 - 1),
    ua.VariantType.Int64: (-(2**63), 2**63 - 1),
    ua.VariantType.UInt64: (0, 2**64 - 1),
}

_KINDS = {
    **{int(each.value): Kind.NUMBER for each in _INTEGERS},
    **dict.fromkeys(
        (
            ua.ObjectIds.Float,
            ua.ObjectIds.Double,
            ua.ObjectIds.Number,
            ua.ObjectIds.Integer,
            ua.ObjectIds.UInteger,
            ua.ObjectIds.Enumeration,
            ua.ObjectIds.Duration,
        ),
        Kind.NUMBER,
    ),
    ua.ObjectIds.Boolean: Kind.BOOL,
    **dict.fromkeys(
        (
            ua.ObjectIds.String,
            ua.ObjectIds.DateTime,
            ua.ObjectIds.UtcTime,
            ua.ObjectIds.Guid,
            ua.ObjectIds.LocalizedText,
            ua.ObjectIds.LocaleId,
        ),
        Kind.TEXT,
    ),
}
"""By a type's number in the standard's namespace."""

_QUALITIES = (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD)
"""By a StatusCode's severity, its two upper bits."""

FIRST_BELIEVED_US = 31_536_000_000_000
"""1971. The null time of the library, and of many devices, is 1601 or 1970: such a time is none."""


class Unsupported(NamedTuple):
    """A value that no point can hold, and why."""

    reason: str


Scalar = bool | int | float | str | Unsupported | None


@dataclass(frozen=True, slots=True)
class Change:
    """A monitored item's new value: times in µs since 1970 UTC, None where the server gave none."""

    handle: int
    value: Scalar
    status: int
    source_us: int | None
    server_us: int | None


def is_text(text: str) -> bool:
    """Whether a text is UTF-8: the library lets through what is not, and nothing that stores it does."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean(text: str) -> str:
    """Return a text as it may be stored and shown, whatever the other side wrote."""
    return text.encode(errors="replace").decode().replace("\0", "")


def quality_of(status: int) -> Quality:
    """Return how far a value with this StatusCode is to be trusted."""
    return _QUALITIES[status >> 30 & 3]


def status_of(quality: Quality) -> int:
    """Return the StatusCode of a value of this quality."""
    return int(quality) << 30


def scalar_of(variant: ua.Variant | None) -> Scalar:
    """Return what a variant holds, as a point can hold it."""
    if variant is None or variant.Value is None:
        return None
    value, kind = variant.Value, variant.VariantType
    if variant.is_array or isinstance(value, list | tuple):
        return Unsupported("it holds an array: read its elements by nodes of their own")
    if isinstance(value, str) and not is_text(value):
        return Unsupported("it holds a text that is no UTF-8")
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, ua.LocalizedText):
        return clean(value.Text or "")
    if kind is ua.VariantType.Guid:
        return str(value)
    return Unsupported(f"it holds a {kind.name}, which is no number, bool or text")


def add_value(
    decoded: Decoded,
    source: Source,
    metric: str,
    ts: int,
    value: bool | int | float | str | None,
    quality: Quality,
    unit: str | None = None,
    *,
    kind: Kind | None,
) -> None:
    """Take a value as a point, or refuse it.

    A bad one without a value is of its series' kind, else of this one, which the node is said to
    have. Where neither is known it is no point: it would fix the kind of all that follow.
    """
    if value is None and quality is Quality.BAD:
        series = source.series.get(metric)
        held = kind if series is None else Kind(series.kind)
        if held is not None:
            nothing = "" if held is Kind.TEXT else NO_VALUE
            decoded.points.append(Point(metric, ts, held, nothing, quality, unit))
    else:
        decoded.add(0, metric, ts, value, quality, unit)


def kind_of(data_type: ua.NodeId) -> Kind | None:
    """Return the kind of the values of a node of this type, None if that cannot be told."""
    if data_type.NamespaceIndex != 0 or not isinstance(data_type.Identifier, int):
        return None
    return _KINDS.get(data_type.Identifier)


def change_of(handle: int, data: ua.DataValue) -> Change:
    """Return a DataValue as the library reads it."""
    status = 0 if data.StatusCode is None else data.StatusCode.value
    return Change(
        handle,
        scalar_of(data.Value),
        status,
        us_of(data.SourceTimestamp),
        us_of(data.ServerTimestamp),
    )


def variant_for(value: Any, kind: ua.VariantType) -> ua.Variant:
    """Return a JSON value as the type that a node has. Raises ValueError if it does not fit."""
    if kind is ua.VariantType.Boolean:
        if isinstance(value, bool):
            return ua.Variant(value, kind)
        raise ValueError("the node holds a bool")
    if kind in (ua.VariantType.Float, ua.VariantType.Double):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return ua.Variant(float(value), kind)
        raise ValueError("the node holds a number")
    if kind in _INTEGERS:
        least, most = _INTEGERS[kind]
        is_whole = isinstance(value, int | float) and float(value).is_integer()
        if is_whole and not isinstance(value, bool) and least <= value <= most:
            return ua.Variant(int(value), kind)
        raise ValueError(f"the node holds a whole number from {least} to {most}")
    if kind is ua.VariantType.String:
        if isinstance(value, str):
            return ua.Variant(value, kind)
        raise ValueError("the node holds a text")
    if kind is ua.VariantType.LocalizedText and isinstance(value, str):
        return ua.Variant(ua.LocalizedText(value), kind)
    if kind is ua.VariantType.DateTime and isinstance(value, str):
        return ua.Variant(datetime.fromisoformat(value).astimezone(UTC), kind)
    raise ValueError(f"a {kind.name} cannot be written")


def moment_of(us: int) -> datetime:
    """Return µs since 1970 as OPC UA's library wants its times: aware, in UTC."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).replace(microsecond=us % 1_000_000)


def us_of(moment: datetime | None) -> int | None:
    """Return a time as µs since 1970 UTC, None if it is none."""
    if moment is None:
        return None
    us = as_us(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return us if us >= FIRST_BELIEVED_US else None
