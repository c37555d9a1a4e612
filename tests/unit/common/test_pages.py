import base64
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.common.http.pages import _digest, decode_cursor, encode_cursor


class AlertPosition(msgspec.Struct, frozen=True):
    at: datetime
    id: UUID


class DevicePosition(msgspec.Struct, frozen=True):
    at: datetime
    id: UUID


HERE = AlertPosition(
    datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC), UUID("550e8400-e29b-41d4-a716-446655440000")
)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_leads_back_to_its_place(at: datetime, id_: UUID) -> None:
    position = AlertPosition(at, id_)
    assert decode_cursor(encode_cursor(position), AlertPosition) == position


def test_a_cursor_needs_no_escaping_in_a_query() -> None:
    assert encode_cursor(HERE).replace("-", "").replace("_", "").isalnum()


@given(st.integers(0, 1000), st.sampled_from("AZaz09-_=+/ é"))
def test_a_cursor_with_one_letter_changed_is_malformed(index: int, letter: str) -> None:
    cursor = encode_cursor(HERE)
    index %= len(cursor)
    changed = cursor[:index] + letter + cursor[index + 1 :]
    if changed != cursor:
        with pytest.raises(Malformed):
            decode_cursor(changed, AlertPosition)


@pytest.mark.parametrize("cursor", ["", "A", "====", "x" * 5000, "💥"])
def test_what_never_was_a_cursor_is_malformed(cursor: str) -> None:
    with pytest.raises(Malformed):
        decode_cursor(cursor, AlertPosition)


def test_a_cursor_of_another_list_is_malformed() -> None:
    with pytest.raises(Malformed):
        decode_cursor(encode_cursor(HERE), DevicePosition)


def test_a_cursor_of_another_version_is_malformed() -> None:
    raw = bytearray(
        base64.urlsafe_b64decode(encode_cursor(HERE) + "=="[: -len(encode_cursor(HERE)) % 4])
    )
    raw[0] = 2
    with pytest.raises(Malformed):
        decode_cursor(base64.urlsafe_b64encode(raw).rstrip(b"=").decode(), AlertPosition)


class Place(msgspec.Struct, frozen=True):
    """Of every kind that a position may have."""

    at: datetime
    name: str
    seq: int
    id: UUID


def forge(value: object) -> str:
    """Return a cursor as whoever has read this code can make it, of any value."""
    return forge_bytes(msgspec.msgpack.encode(value))


def forge_bytes(packed: bytes) -> str:
    raw = b"\1" + _digest(Place, packed) + packed
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


ZONES = st.none() | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.binary(max_size=20)
    | st.uuids().map(str)
    | st.datetimes(timezones=ZONES)
    | st.datetimes(timezones=ZONES).map(datetime.isoformat),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=4,
)
GOOD: dict[str, Any] = {
    "at": HERE.at,
    "name": "press 7",
    "seq": 12,
    "id": HERE.id,
}


def test_what_is_forged_as_we_would_make_it_is_none_the_worse() -> None:
    assert decode_cursor(forge(GOOD), Place) == Place(**GOOD)


@given(
    st.fixed_dictionaries(
        {},
        optional={name: ANYTHING | st.just(value) for name, value in GOOD.items()}
        | {"more": ANYTHING},
    )
    | ANYTHING
)
def test_a_forged_cursor_is_one_that_we_could_have_issued_or_malformed(value: object) -> None:
    cursor = forge(value)
    try:
        place = decode_cursor(cursor, Place)
    except Malformed:
        return
    assert encode_cursor(place) == cursor
    # What PostgreSQL takes.
    place.at.astimezone(UTC)
    assert place.at.tzinfo is not None
    assert "\0" not in place.name
    place.name.encode()
    place.seq.to_bytes(8, "big", signed=True)


@given(st.binary(max_size=768) | st.binary(max_size=8).map(lambda unit: unit * 96))
def test_bytes_that_are_no_message_are_malformed(packed: bytes) -> None:
    with pytest.raises(Malformed):
        decode_cursor(forge_bytes(packed), Place)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "nul \0"},
        {"seq": 2**63},
        {"at": datetime(2026, 3, 1)},  # noqa: DTZ001 - a time without a zone is what is refused
        {"at": "2026-03-01T12:00:00+14:00"},
        {"at": "0001-01-01T00:00:00+14:00"},
        {"at": "9999-12-31T23:59:59-12:00"},
        {"at": msgspec.msgpack.Ext(-1, bytes(4) + (2**62).to_bytes(8, "big"))},
        {"id": "550E8400-E29B-41D4-A716-446655440000"},
        {"more": 1},
        {"more": [[]]},
    ],
    ids=[
        "null character",
        "beyond int64",
        "time without a zone",
        "foreign zone",
        "before year 1",
        "after year 9999",
        "timestamp out of range",
        "id in capitals",
        "unknown field",
        "nested unknown field",
    ],
)
def test_what_no_row_can_have_is_malformed(wrong: dict[str, object]) -> None:
    with pytest.raises(Malformed) as raised:
        decode_cursor(forge(GOOD | wrong), Place)
    assert [error.pointer for error in raised.value.errors] == ["?cursor"]


def test_half_a_character_is_malformed() -> None:
    packed = msgspec.msgpack.encode(GOOD).replace(b"press 7", b"pre\xed\xa0\x807")
    with pytest.raises(Malformed):
        decode_cursor(forge_bytes(packed), Place)


def test_a_cursor_as_deep_as_it_may_be_is_malformed() -> None:
    deep = msgspec.msgpack.encode(GOOD | {"more": None})[:-1] + b"\x91" * 5_000 + b"\xc0"
    with pytest.raises(Malformed):
        decode_cursor(forge_bytes(deep), Place)
