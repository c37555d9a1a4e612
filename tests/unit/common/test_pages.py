import base64
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Malformed
from libs.common.http.pages import decode_cursor, encode_cursor


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
