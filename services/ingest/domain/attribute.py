"""What is known of a device that is no time series: its firmware, where it is mounted, its settings."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from libs.common.errors import FieldError, Invalid
from services.ingest.domain.document import fault_of

MOST_ATTRIBUTES = 100
"""Of one device and scope."""
LONGEST_NAME = 128
LARGEST_VALUE_BYTES = 4096
DEEPEST = 8


class Scope(StrEnum):
    """Who sets an attribute, and who may see it."""

    SERVER = "server"
    """Users set it; the device does not see it."""
    SHARED = "shared"
    """Users set it, and the device may read it."""
    CLIENT = "client"
    """The device says it of itself."""


def merged(current: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes with a patch put in (RFC 7396): null removes.

    Raises Invalid, naming what is wrong.
    """
    errors = []
    for name, value in patch.items():
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            reason = f"a name has 1 to {LONGEST_NAME} printable characters"
            errors.append(FieldError(f"#/{name[:LONGEST_NAME]}", reason))
        elif fault := fault_of(value):
            errors.append(FieldError(f"#/{name}", fault))
        elif _size(value) > LARGEST_VALUE_BYTES:
            reason = f"a value has {LARGEST_VALUE_BYTES} bytes of JSON at most"
            errors.append(FieldError(f"#/{name}", reason))
    if errors:
        raise Invalid(f"{errors[0].pointer}: {errors[0].reason}", errors=errors[:20])
    result = _merge(dict(current), patch, 0)
    if len(result) > MOST_ATTRIBUTES:
        raise Invalid(f"a device has {MOST_ATTRIBUTES} attributes of a scope at most")
    for name in patch.keys() & result.keys():
        if _size(result[name]) > LARGEST_VALUE_BYTES:
            raise Invalid(f"a value has {LARGEST_VALUE_BYTES} bytes of JSON at most")
    return result


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the attributes that are another than before, or gone, sorted.

    As JSON tells them apart, in which `true` is not 1.
    """
    return sorted(
        name
        for name in before.keys() | after.keys()
        if (name in before) != (name in after)
        or _canonical(before[name]) != _canonical(after[name])
    )


def _size(value: object) -> int:
    return len(json.dumps(value).encode())


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _merge(current: dict[str, Any], patch: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise Invalid(f"attributes are {DEEPEST} levels deep at most")
    result = dict(current)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            before = result.get(name)
            result[name] = _merge(before if isinstance(before, dict) else {}, value, depth + 1)
        else:
            result[name] = value
    return result
