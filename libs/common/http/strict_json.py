"""What JSON itself leaves open and we do not: duplicate keys, NaN, numbers and text that would break later."""

import json
import math
import re
from collections.abc import Iterator

from libs.common.errors import FieldError, Invalid, Malformed
from libs.common.http.problems import body_pointer

MAX_DEPTH = 32
MAX_INTEGER = 2**53
"""Beyond it, JavaScript and many JSON libraries silently change the number (RFC 8259, section 6)."""
MAX_FAULTS = 20

# Every fault that `_faults` looks for leaves one of these marks in the bytes.
_SUSPICIOUS = re.compile(rb"NaN|Infinity|\\u0000|\\u[dD][89a-fA-F]|\d{16}|[eE]\+?\d{3}")


class _Repeated(Exception):
    pass


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Repeated(key)
            seen.add(key)
    return mapping


_decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)


def check_json(body: bytes) -> None:
    """Raise Malformed or Invalid if the body is not JSON that every reader understands alike.

    Malformed (400): not UTF-8, a byte order mark, a syntax error (with its position), a key twice
    in one object, more than 32 levels. Invalid (422, with pointers): NaN and infinities, integers
    beyond ±2^53, U+0000 and lone surrogates in text. An empty body passes: its absence is judged
    by the route.
    """
    if not body:
        return
    if body.startswith(b"\xef\xbb\xbf"):
        raise Malformed("The body begins with a byte order mark; JSON is sent without one.")
    try:
        value = _decoder.decode(body.decode())
    except UnicodeDecodeError as error:
        raise Malformed(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The body is not JSON: {error.msg} at character {error.pos} "
            f"(line {error.lineno}, column {error.colno})."
        ) from None
    except _Repeated as error:
        raise Malformed(f"The key {str(error)[:100]!r} stands twice in one object.") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        # Python refuses to read an integer of more than 4,300 digits.
        raise Malformed("The body holds a number that is too long.") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _is_deeper_than(value, MAX_DEPTH):
        raise _too_deep()
    if _SUSPICIOUS.search(body) is not None:
        errors = [error for error, _ in zip(_faults(value, ()), range(MAX_FAULTS), strict=False)]
        if errors:
            raise Invalid(f"{errors[0].pointer}: {errors[0].reason}", errors=errors)


def _too_deep() -> Malformed:
    return Malformed(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _is_deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    inner = value.values() if isinstance(value, dict) else value
    return any(_is_deeper_than(item, levels - 1) for item in inner)


def _faults(value: object, at: tuple[str | int, ...]) -> Iterator[FieldError]:
    match value:
        case float() if not math.isfinite(value):
            yield FieldError(body_pointer(at), "must be a finite number")
        case bool():
            return
        case int() if abs(value) > MAX_INTEGER:
            yield FieldError(body_pointer(at), "must lie between -2^53 and 2^53")
        case str():
            yield from _faults_in_text(value, at)
        case dict():
            for key, inner in value.items():
                yield from _faults_in_text(key, at)
                yield from _faults(inner, (*at, key))
        case list():
            for position, inner in enumerate(value):
                yield from _faults(inner, (*at, position))


def _faults_in_text(text: str, at: tuple[str | int, ...]) -> Iterator[FieldError]:
    if "\0" in text:
        yield FieldError(body_pointer(at), "must not hold U+0000")
    elif not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        yield FieldError(body_pointer(at), "must not hold half of a surrogate pair")
