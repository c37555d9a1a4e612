import pytest

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.http.strict_json import check_json


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"a": [1, 2.5, -3e2, true, null, "\xc3\xa9"]}',
        b'{"id": "550e8400-e29b-41d4-a716-446655440000"}',
        b'{"n": 9007199254740992, "m": -9007199254740992}',
        b'{"text": "NaN and Infinity are words here"}',
        b'{"pair": "\\ud83d\\ude00"}',
        b'[{"a": 1}, {"a": 2}]' + b" " * 40,
        b"[" + b"[]," * 40 + b"[]]",
    ],
)
def test_plain_json_passes(body: bytes) -> None:
    check_json(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": }', "at character 6 (line 1, column 7)"),
        (b"{'a': 1}", "at character 1"),
        (b'{"a": 1} x', "Extra data"),
        (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
        (b'{"a": "\xff"}', "byte 7"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (b"[" * 33 + b"]" * 33, "deeper than 32"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 32"),
        (b'{"n": ' + b"9" * 5000 + b"}", "too long"),
    ],
)
def test_what_cannot_be_read_alike_by_everyone_is_malformed(body: bytes, said: str) -> None:
    with pytest.raises(Malformed) as raised:
        check_json(body)
    assert said in raised.value.detail


@pytest.mark.parametrize(
    ("body", "pointer", "reason"),
    [
        (b'{"values": {"temp": NaN}}', "#/values/temp", "must be a finite number"),
        (b'{"values": [1, -Infinity]}', "#/values/1", "must be a finite number"),
        (b'{"v": 1e999}', "#/v", "must be a finite number"),
        (b'{"n": 9007199254740993}', "#/n", "must lie between -2^53 and 2^53"),
        (b'{"a/b": "x\\u0000y"}', "#/a~1b", "must not hold U+0000"),
        (b'{"\\u0000": 1}', "#", "must not hold U+0000"),
        (b'["\\ud83d"]', "#/0", "must not hold half of a surrogate pair"),
        (b"NaN", "#", "must be a finite number"),
    ],
)
def test_a_value_that_would_break_later_is_named(body: bytes, pointer: str, reason: str) -> None:
    with pytest.raises(Invalid) as raised:
        check_json(body)
    assert raised.value.errors == (FieldError(pointer, reason),)


def test_a_thousand_faults_are_not_all_listed() -> None:
    with pytest.raises(Invalid) as raised:
        check_json(b"[" + b"NaN," * 999 + b"NaN]")
    assert len(raised.value.errors) == 20
