"""Sparkplug B's payloads: the messages of its specification, and what their metrics hold.

The fields and numbers are those of Sparkplug 3.0, section 6.4; of the parts that nobody reads here
(metadata, data sets, templates) only the place is kept.
"""

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeGuard

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.historian.point import Kind, Quality
from services.ingest.domain.payload import (
    LONGEST_METRIC,
    LONGEST_UNIT,
    MOST_READINGS,
    NO_VALUE,
    Decoded,
    Point,
    Window,
    as_reading,
    as_us,
)

_F = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "iiot.sparkplug"

_MESSAGES: dict[str, list[tuple[int, str, int, str | None]]] = {
    "Payload": [
        (1, "timestamp", _F.TYPE_UINT64, None),
        (2, "metrics", _F.TYPE_MESSAGE, "Metric"),
        (3, "seq", _F.TYPE_UINT64, None),
        (4, "uuid", _F.TYPE_STRING, None),
        (5, "body", _F.TYPE_BYTES, None),
    ],
    "Metric": [
        (1, "name", _F.TYPE_STRING, None),
        (2, "alias", _F.TYPE_UINT64, None),
        (3, "timestamp", _F.TYPE_UINT64, None),
        (4, "datatype", _F.TYPE_UINT32, None),
        (5, "is_historical", _F.TYPE_BOOL, None),
        (6, "is_transient", _F.TYPE_BOOL, None),
        (7, "is_null", _F.TYPE_BOOL, None),
        (9, "properties", _F.TYPE_MESSAGE, "PropertySet"),
        (10, "int_value", _F.TYPE_UINT32, None),
        (11, "long_value", _F.TYPE_UINT64, None),
        (12, "float_value", _F.TYPE_FLOAT, None),
        (13, "double_value", _F.TYPE_DOUBLE, None),
        (14, "boolean_value", _F.TYPE_BOOL, None),
        (15, "string_value", _F.TYPE_STRING, None),
        (16, "bytes_value", _F.TYPE_BYTES, None),
        (17, "dataset_value", _F.TYPE_BYTES, None),
        (18, "template_value", _F.TYPE_BYTES, None),
    ],
    "PropertySet": [
        (1, "keys", _F.TYPE_STRING, None),
        (2, "values", _F.TYPE_MESSAGE, "PropertyValue"),
    ],
    "PropertyValue": [
        (1, "type", _F.TYPE_UINT32, None),
        (2, "is_null", _F.TYPE_BOOL, None),
        (3, "int_value", _F.TYPE_UINT32, None),
        (4, "long_value", _F.TYPE_UINT64, None),
        (5, "float_value", _F.TYPE_FLOAT, None),
        (6, "double_value", _F.TYPE_DOUBLE, None),
        (7, "boolean_value", _F.TYPE_BOOL, None),
        (8, "string_value", _F.TYPE_STRING, None),
    ],
}
_REPEATED = frozenset({"metrics", "keys", "values"})


def _payload_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="iiot/sparkplug.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, of_type, inner in fields:
            message.field.add(
                name=field,
                number=number,
                type=of_type,
                label=_F.LABEL_REPEATED if field in _REPEATED else _F.LABEL_OPTIONAL,
                type_name=f".{_PACKAGE}.{inner}" if inner else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Payload"))


Payload = _payload_class()
"""The protobuf message; made here, so that nobody needs a compiler for it."""

_SIGNED_BITS = {1: 8, 2: 16, 3: 32, 4: 64}
_INTEGERS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 13})
"""13 is a time, which is taken as milliseconds since 1970."""
_UNSIGNED_BITS = {5: 8, 6: 16, 7: 32, 8: 64, 13: 64}
_FLOAT, _DOUBLE = 9, 10
_FLOATS = frozenset({_FLOAT, _DOUBLE})
_LARGEST_FLOAT = (2 - 2.0**-23) * 2.0**127
"""Of 32 bits."""
BOOLEAN = 11
_TEXTS = frozenset({12, 14, 15})
_VALUES = (
    *("int_value", "long_value", "float_value", "double_value"),
    *("boolean_value", "string_value"),
)
_LEAST_GOOD, _LEAST_UNCERTAIN, _STALE = 192, 64, 500


@dataclass(frozen=True, slots=True)
class Declared:
    """What a birth certificate says of a metric."""

    name: str
    datatype: int
    unit: str | None


def parse(payload: bytes) -> Any:
    """Parse a payload. Raises Malformed if it is none, Invalid if it is too long."""
    parsed = Payload()
    try:
        parsed.ParseFromString(payload)
    except DecodeError as error:
        raise Malformed("not a Sparkplug B payload: no protobuf message of its form") from error
    if len(parsed.metrics) > MOST_READINGS:
        raise Invalid(
            f"at most {MOST_READINGS} metrics in one message",
            errors=[FieldError("#", f"holds {len(parsed.metrics)} metrics")],
        )
    return parsed


def decode_sparkplug(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read a payload that stands for itself: its metrics have their names and types, as in a birth."""
    decoded = Decoded(as_us(received_at))
    parsed = parse(payload)
    for index, metric in enumerate(parsed.metrics):
        add_metric(decoded, index, metric, declared_in(metric), parsed, window)
    return decoded


def declared_in(metric: Any) -> Declared | None:
    """Return what a metric says of itself; None if it lacks its name or its type."""
    if not metric.name or not metric.datatype:
        return None
    unit = _property(metric, "engunit")
    if not isinstance(unit, str) or not 0 < len(unit) <= LONGEST_UNIT:
        unit = None
    return Declared(metric.name[: LONGEST_METRIC + 1], metric.datatype, unit)


def add_metric(
    decoded: Decoded,
    index: int,
    metric: Any,
    declared: Declared | None,
    payload: Any,
    window: Window,
) -> None:
    """Add a metric's value as a point, or refuse it with its reason."""
    if declared is None:
        named = metric.name or f"alias {metric.alias}"
        detail = f"{named}: no birth certificate has named it and its type"
        part = as_reading(named, decoded.received_at + index, None)
        decoded.refuse(index, metric.name or None, "unknown_alias", detail, part)
    else:
        _add_declared(decoded, index, metric, declared, payload, window)
    decoded.ends.append(len(decoded.points))


def _add_declared(
    decoded: Decoded, index: int, metric: Any, declared: Declared, payload: Any, window: Window
) -> None:
    ms = metric.timestamp or payload.timestamp
    ts = ms * 1000 if ms else decoded.received_at + index
    disbelief = window.disbelief(ts, ms)
    if disbelief is not None:
        part = as_reading(declared.name, min(ts, 2**62), None)
        decoded.refuse(index, declared.name, *disbelief, part)
        return
    quality, unit = _quality(metric), declared.unit
    kind = _kind(declared.datatype)
    if kind is None:
        detail = f"a metric of type {declared.datatype} is no number, bool or text"
        part = as_reading(declared.name, ts, None)
        decoded.refuse(index, declared.name, "unsupported_value", detail, part)
    elif metric.is_null or not any(metric.HasField(field) for field in _VALUES):
        held = "" if kind is Kind.TEXT else NO_VALUE
        if declared.name and len(declared.name) <= LONGEST_METRIC and "\0" not in declared.name:
            decoded.points.append(Point(declared.name, ts, kind, held, Quality.BAD, unit))
        else:
            decoded.add(index, declared.name, ts, None, Quality.BAD, unit)
    else:
        decoded.add(index, declared.name, ts, _value(metric, declared.datatype), quality, unit)


def _kind(datatype: int) -> Kind | None:
    if datatype in _INTEGERS or datatype in _FLOATS:
        return Kind.NUMBER
    if datatype == BOOLEAN:
        return Kind.BOOL
    return Kind.TEXT if datatype in _TEXTS else None


def _value(metric: Any, datatype: int) -> float | bool | str | None:
    field = next(field for field in _VALUES if metric.HasField(field))
    value: float | bool | str = getattr(metric, field)
    bits = _SIGNED_BITS.get(datatype)
    if bits is not None and isinstance(value, int):
        # Signed integers travel as unsigned ones, in two's complement.
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value
    is_sound = isinstance(value, str) == (datatype in _TEXTS)
    if datatype == BOOLEAN:
        return bool(value) if is_sound else None
    return value if is_sound and not isinstance(value, bool) else None


def set_value(metric: Any, value: float | bool | str) -> None:
    """Give a metric a value of its datatype. Raises Invalid if the value is none of that."""
    datatype = metric.datatype
    if datatype == BOOLEAN and isinstance(value, bool):
        metric.boolean_value = value
    elif datatype in _TEXTS and isinstance(value, str):
        metric.string_value = value
    elif datatype == _FLOAT and _is_number(value) and abs(value) <= _LARGEST_FLOAT:
        metric.float_value = value
    elif datatype == _DOUBLE and _is_number(value):
        metric.double_value = value
    elif datatype in _INTEGERS and _is_number(value) and value == int(value):
        _set_integer(metric, int(value))
    else:
        raise Invalid(f"{str(value)[:80]!r} is no value of Sparkplug's type {datatype}")


def _set_integer(metric: Any, value: int) -> None:
    datatype = metric.datatype
    bits = _SIGNED_BITS.get(datatype) or _UNSIGNED_BITS[datatype]
    least, most = (
        (0, 2**bits) if datatype in _UNSIGNED_BITS else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    )
    if not least <= value < most:
        raise Invalid(f"{value} does not fit into {bits} bits")
    # Two's complement of the type's own width, which all of Sparkplug's libraries read.
    field = "long_value" if bits == 64 else "int_value"
    setattr(metric, field, value & (2**bits - 1))


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number of 64 bits at most, which true and false are not."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _quality(metric: Any) -> Quality:
    code = _property(metric, "quality")
    if not isinstance(code, int):
        return Quality.GOOD
    if code == _STALE:
        return Quality.UNCERTAIN
    if code >= _LEAST_GOOD:
        return Quality.GOOD
    return Quality.UNCERTAIN if code >= _LEAST_UNCERTAIN else Quality.BAD


def _property(metric: Any, wanted: str) -> object:
    if not metric.HasField("properties"):
        return None
    for key, value in zip(metric.properties.keys, metric.properties.values, strict=False):
        if key.lower() == wanted and not value.is_null:
            for field in _VALUES:
                if value.HasField(field):
                    held: object = getattr(value, field)
                    return held
    return None
