"""CoAP datagrams (RFC 7252) as this endpoint cuts and makes them. Pure.

aiocoap's codec reads and writes them. What telemetry needs ten thousand times a second is here: the
answer to a datagram is its own first bytes with another type and code, and what follows.
"""

from collections.abc import Sequence
from typing import NamedTuple

from aiocoap import Message
from aiocoap.numbers import Code, OptionNumber

from libs.common.errors import (
    AppError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.domain.token import PREFIX

CON, NON, ACK, RST = range(4)
POST = 0x02
MARKER = 0xFF
"""What stands between options and payload."""
HEADER = 4
LONGEST_TOKEN = 8
MOST_DIAGNOSIS = 120
"""Characters of a diagnostic payload, so that an answer to a stranger is not much more than it sent."""
LARGEST_FACTOR = 3
"""How many times the question an answer may be that goes to an address nobody has proved to be at: it
may be somebody else's, who is to be flooded. The same bound as QUIC has (RFC 9000, 8)."""
MOST_BESIDE = 34
"""Bytes of an answer beside its payload: header, token, ETag, Observe, Block2 and the like."""
LARGEST_BLOCK = 6
"""1,024 bytes, as an exponent (RFC 7959)."""
SUPPRESS_SUCCESS = 0x02
"""The bit of No-Response (RFC 7967) that says that 2.xx is not wanted."""

FORMATS = {
    50: PayloadFormat.JSON,
    60: PayloadFormat.CBOR,
    110: PayloadFormat.SENML_JSON,
    112: PayloadFormat.SENML_CBOR,
}
"""By Content-Format, as IANA numbers them."""

UNDERSTOOD = frozenset(
    {
        OptionNumber.URI_HOST,
        OptionNumber.URI_PORT,
        OptionNumber.URI_PATH,
        OptionNumber.URI_QUERY,
        OptionNumber.CONTENT_FORMAT,
        OptionNumber.ACCEPT,
        OptionNumber.BLOCK1,
        OptionNumber.BLOCK2,
        OptionNumber.OSCORE,
        OptionNumber.OBSERVE,
    }
)
"""The critical options that are understood. (Observe is elective.)"""

_CODES: tuple[tuple[type[AppError], Code], ...] = (
    (Malformed, Code.BAD_REQUEST),
    (Invalid, Code.BAD_REQUEST),
    (Unauthenticated, Code.UNAUTHORIZED),
    (Forbidden, Code.FORBIDDEN),
    (NotFound, Code.NOT_FOUND),
    (TooLarge, Code.REQUEST_ENTITY_TOO_LARGE),
    (UnsupportedMedia, Code.UNSUPPORTED_CONTENT_FORMAT),
    (TooManyRequests, Code.TOO_MANY_REQUESTS),
    (Unavailable, Code.SERVICE_UNAVAILABLE),
)


class Named(NamedTuple):
    """What a request's path names: something of the device whose token stands in it, if one does."""

    token: str | None
    path: tuple[str, ...]


def read_path(segments: Sequence[str], queries: Sequence[str]) -> Named | None:
    """Read `/v1/…`, `/v1/{token}/…` or `/api/v1/{token}/…`, the token or `?token=`; None: another path."""
    parts = list(segments)
    if parts[:1] == ["api"]:
        parts = parts[1:]
    if parts[:1] != ["v1"] or len(parts) < 2:
        return None
    parts = parts[1:]
    token = next((query[6:] for query in queries if query.startswith("token=")), None)
    if parts[0].startswith(PREFIX):
        token = parts[0]
        parts = parts[1:]
    return Named(token, tuple(parts)) if parts else None


def unknown_critical_options(message: Message) -> list[int]:
    """Return the numbers of the critical options of a request that are not understood here."""
    return [
        int(option.number)
        for option in message.opt.option_list()
        if option.number.is_critical() and option.number not in UNDERSTOOD
    ]


def head_of(data: bytes) -> bytes:
    """Return a datagram's header and token: what its answer is made of."""
    return data[: HEADER + (data[0] & 0x0F)]


def acknowledgement(head: bytes, tail: bytes) -> bytes:
    """Return the ACK that carries an answer; without a code, it is the ACK alone."""
    if not tail:
        return b"\x60\x00" + head[2:4]
    return bytes((0x60 | (head[0] & 0x0F), tail[0])) + head[2:] + tail[1:]


def unconfirmed(head: bytes, tail: bytes, mid: int) -> bytes:
    """Return the NON that carries an answer, with a message id of ours."""
    length = head[0] & 0x0F
    return bytes((0x50 | length, tail[0], mid >> 8, mid & 0xFF)) + head[HEADER:] + tail[1:]


def reset(data: bytes) -> bytes:
    """Return the RST to a datagram."""
    return b"\x70\x00" + data[2:4]


def tail_of(answer: Message) -> bytes:
    """Return what of an answer does not depend on the datagram it answers: code, options, payload."""
    made = answer.copy(mtype=ACK, mid=0)
    made.token = b""
    encoded: bytes = made.encode()
    return encoded[1:2] + encoded[HEADER:]


def bounded(tail: bytes, data: bytes) -> bytes:
    """Return an answer to a stranger: without its diagnostic payload, if it would be more than
    `LARGEST_FACTOR` times what was asked.
    """
    length = HEADER - 1 + (data[0] & 0x0F) + len(tail)
    return tail if length <= LARGEST_FACTOR * len(data) else tail[:1]


def largest_block(asked: int) -> int:
    """Return the size exponent of the blocks that a question of so many bytes is answered in, as long
    as its address may be forged: an answer is at most `LARGEST_FACTOR` times the question.
    """
    room = LARGEST_FACTOR * asked - MOST_BESIDE
    return max(0, min(LARGEST_BLOCK, room.bit_length() - 5)) if room > 0 else 0


def refusal(error: AppError) -> Message:
    """Return an error as CoAP says it, with its reason as diagnostic payload."""
    code = next((c for kind, c in _CODES if isinstance(error, kind)), Code.INTERNAL_SERVER_ERROR)
    answer = Message(code=code, payload=error.detail[:MOST_DIAGNOSIS].encode())
    if error.retry_after_s is not None:
        answer.opt.max_age = max(1, round(error.retry_after_s))
    return answer


CHANGED = bytes((Code.CHANGED,))
"""2.04 and nothing else: taken, and safe."""
