"""Long lists, a page at a time, by cursor: stable while rows come and go."""

import base64
import binascii
import hashlib
from datetime import datetime
from typing import Annotated, Generic, TypeVar

import msgspec
from fastapi import Depends, Query

from libs.common.errors import FieldError, Malformed
from libs.common.http.schemas import Out

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

T = TypeVar("T")
Position = TypeVar("Position", bound=msgspec.Struct)

_VERSION = 1
_DIGEST_BYTES = 6


class Page(Out, Generic[T]):
    """A part of a list, and the cursor that leads to the next one (null at the end)."""

    items: list[T]
    next_cursor: str | None


async def _limit(
    limit: Annotated[
        int, Query(ge=1, le=MAX_LIMIT, description="How many items at most.")
    ] = DEFAULT_LIMIT,
) -> int:
    return limit


async def _cursor(
    cursor: Annotated[
        str | None, Query(max_length=1024, description="`next_cursor` of the page before.")
    ] = None,
) -> str | None:
    return cursor


Limit = Annotated[int, Depends(_limit)]
"""The query parameter `limit`: 1 to 200, 50 if it is not given. Write `limit: Limit`."""

Cursor = Annotated[str | None, Depends(_cursor)]
"""The query parameter `cursor`, still encoded. Write `cursor: Cursor`."""


def encode_cursor(position: msgspec.Struct) -> str:
    """Return the place in a list as text without meaning for the client.

    It is not secret and not signed: what it may lead to is decided by who asks. A position is flat,
    its times have a zone.
    """
    packed = msgspec.msgpack.encode(position)
    digest = _digest(type(position), packed)
    return base64.urlsafe_b64encode(bytes([_VERSION]) + digest + packed).rstrip(b"=").decode()


def decode_cursor(cursor: str, position: type[Position]) -> Position:
    """Return the place that the cursor stands for.

    Raises Malformed if it was changed, belongs to another list, or is of another version; and if
    somebody made it himself, of what no row can have and the database would not take.
    """
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), b"-_", validate=True)  # fmt: skip
    except (UnicodeEncodeError, binascii.Error):
        raise _bad_cursor() from None
    # The last letter has bits to spare; only one spelling is ours.
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != cursor:
        raise _bad_cursor()
    digest, packed = raw[1 : 1 + _DIGEST_BYTES], raw[1 + _DIGEST_BYTES :]
    if raw[:1] != bytes([_VERSION]) or digest != _digest(position, packed):
        raise _bad_cursor()
    try:
        place = msgspec.msgpack.decode(packed, type=position)
        again = msgspec.msgpack.encode(place)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        raise _bad_cursor() from None
    # Of the ways to write the same, ours is one: times in UTC, no field beside those there are.
    if again != packed or not all(map(_is_of_a_row, msgspec.structs.astuple(place))):
        raise _bad_cursor()
    return place


def _is_of_a_row(value: object) -> bool:
    match value:
        case str():
            return "\0" not in value
        case int():
            return -(2**63) <= value < 2**63
        case datetime():
            return value.tzinfo is not None
        case _:
            return True


def _digest(position: type[msgspec.Struct], packed: bytes) -> bytes:
    return hashlib.blake2b(
        packed, digest_size=_DIGEST_BYTES, key=position.__qualname__.encode()[:64]
    ).digest()


def _bad_cursor() -> Malformed:
    reason = "The cursor is not one of this list; begin without one."
    return Malformed(reason, errors=[FieldError("?cursor", reason)])
