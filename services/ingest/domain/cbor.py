"""Telemetry as CBOR (RFC 8949): the shapes of JSON in fewer bytes.

A payload is foreign: it may nest, refer to itself, or name a number of a billion digits in six
bytes. So 32 levels are read, and of the tags those of times, big integers and decimal fractions.
"""

import math
from datetime import datetime
from decimal import Decimal
from io import BytesIO
from typing import Any

import cbor2

from libs.common.errors import Malformed
from services.ingest.domain.payload import (
    MOST_POINTS,
    Decoded,
    Window,
    add_parsed,
    as_us,
    check_size,
    show,
)

MAX_DEPTH = 32
MOST_ITEMS = 2 * MOST_POINTS
"""Of all maps and arrays together: readings, what stands beside their values, and values."""

_PLAIN = frozenset({int, float, str, bool, bytes, type(None)})

_EMBEDDED = 55799
"""Says of what follows that it is CBOR."""
_REFUSED_TAGS = (
    *(5, 30),  # fractions: an exponent in a few bytes, a number that fills the memory
    *(25, 28, 29, 256),  # references: what is small may grow without bound, or hold itself
    *(35, 36, 37),  # regular expressions, MIME, UUIDs
    *(100, 258, 260, 261, 1004, 43000),  # days, sets, addresses, complex numbers
)


def _refuse(value: object, immutable: bool) -> object:
    raise ValueError("this tag is not read")


def _pass(value: object, immutable: bool) -> object:
    return value


LONGEST_INTEGER = 16
"""Bytes of a big integer. No double holds a longer one; as a decimal it would take minutes to be one."""


def _natural(value: object, immutable: bool) -> float:
    if not isinstance(value, bytes):
        raise ValueError("a big integer is bytes")
    return int.from_bytes(value, "big") if len(value) <= LONGEST_INTEGER else math.inf


def _negative(value: object, immutable: bool) -> float:
    return -1 - _natural(value, immutable)


_SEMANTICS = {
    **dict.fromkeys(_REFUSED_TAGS, _refuse),
    2: _natural,
    3: _negative,
    _EMBEDDED: _pass,
}


def decode_cbor(payload: bytes, received_at: datetime, window: Window) -> Decoded:
    """Read a payload in CBOR, as `payload.decode` reads JSON; a `ts` may be a CBOR time."""
    decoded = Decoded(as_us(received_at))
    add_parsed(decoded, as_json(parse_cbor(payload)), window)
    return decoded


def parse_cbor(payload: bytes) -> Any:
    """Parse one CBOR item that fills the payload. Raises Malformed, saying where it breaks."""
    decoder = cbor2.CBORDecoder(
        BytesIO(payload),
        semantic_decoders=_SEMANTICS,
        max_depth=MAX_DEPTH,
        allow_duplicate_keys=False,
    )
    try:
        parsed = decoder.decode()
    except (cbor2.CBORError, ValueError, ArithmeticError, TypeError) as error:
        raise Malformed(f"not CBOR: {show(str(error))}") from error
    try:
        decoder.read(1)
    except cbor2.CBORDecodeEOF:
        return parsed
    raise Malformed("not CBOR: something follows its end")


def as_json(value: Any) -> Any:
    """Return what was parsed in the types JSON has; bytes stay, they are nothing that is taken.

    Raises Invalid if it is more than a message of the most points can be: two bytes may be a value.
    """
    return _as_json(value, [MOST_ITEMS])


def _as_json(value: Any, left: list[int]) -> Any:
    kind = value.__class__
    if kind in _PLAIN:
        return value
    if kind is dict or kind is list or kind is tuple:
        left[0] -= len(value)
        if left[0] < 0:
            check_size(MOST_ITEMS)
        if kind is dict:
            return {_as_key(key): _as_json(inner, left) for key, inner in value.items()}
        return [_as_json(inner, left) for inner in value]
    if isinstance(value, Decimal):
        # Not every decimal fits a double: what does not is no number to us.
        return float(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return None if value is cbor2.undefined else {"cbor": show(str(value))}


def _as_key(key: object) -> str:
    return key if isinstance(key, str) else show(str(key))
