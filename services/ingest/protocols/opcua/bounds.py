"""What the library decodes without a bound, bounded: who imports this has it so.

A message of sixty bytes could make it fill the memory, before anybody has logged in: an array says
how long it is and its elements may take no bytes, a length may be negative and leads back, the
dimensions of a matrix may be anything. Here an element takes a byte at least, lengths lead forward,
a matrix has as many elements as it brings, and a message no more than all others can wait for.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asyncua import ua
from asyncua.client.ua_client import UASocketProtocol
from asyncua.common.utils import Buffer, NotEnoughData
from asyncua.ua import ua_binary

CHUNK_BYTES = 65_535
"""The largest part of a message that is taken, from either side."""
MOST_CHUNKS = 4_096
"""Parts of one message of a server's; they may be empty."""
MOST_ELEMENTS = 25_000
"""Of an array and those within it, each decoded by itself, which takes some 10 µs: all others wait."""

Decode = Callable[[Buffer], Any]


def _read(self: Buffer, size: int) -> bytes:
    if not 0 <= size <= self._size:
        raise NotEnoughData(f"{size} bytes are asked for, of {self._size}")
    at = self._cur_pos
    self._size -= size
    self._cur_pos = at + size
    return bytes(self._data[at : at + size])


def _skip(self: Buffer, size: int) -> None:
    if not 0 <= size <= self._size:
        raise NotEnoughData(f"{size} bytes are to be skipped, of {self._size}")
    self._size -= size
    self._cur_pos += size


class _Count:
    """The elements of the array that is being decoded, and of those within it."""

    depth = 0
    elements = 0


@contextmanager
def _counted(length: int) -> Iterator[None]:
    if not _Count.depth:
        _Count.elements = 0
    _Count.elements += max(0, length)
    if _Count.elements > MOST_ELEMENTS:
        raise ua.UaError(f"more than {MOST_ELEMENTS} elements in one message")
    _Count.depth += 1
    try:
        yield
    finally:
        _Count.depth -= 1


def _bounded(make: Callable[..., Decode]) -> Callable[..., Decode]:
    """Return what makes decoders of arrays, of which none has more elements than it has bytes."""

    @functools.cache
    def made(of: Any) -> Decode:
        decode = make(of)
        # Numbers are decoded all at once: a machine's spectrum may have very many.
        is_slow = not (isinstance(of, ua.VariantType) and hasattr(ua_binary.Primitives1, of.name))

        def bounded(data: Buffer) -> Any:
            before = len(data)
            length: int = ua_binary.Primitives.Int32.unpack(data.copy(4))
            if length > before:
                raise ua.UaError(f"an array of {length} elements in {before} bytes")
            with _counted(length if is_slow else 0):
                decoded = decode(data)
            if length > before - len(data):
                raise ua.UaError(f"{length} elements that take no bytes")
            return decoded

        return bounded

    return made


def _reshape(flat: list[Any], dimensions: list[int] | None) -> list[Any]:
    """Return an array as it lies; a matrix is no value of ours, whatever its form."""
    sizes = dimensions or []
    if any(size < 0 for size in sizes) or math.prod(sizes) > len(flat):
        raise ua.UaError(f"{len(flat)} elements, where the dimensions are {sizes[:4]}")
    return flat


class BoundedProtocol(UASocketProtocol):
    """A client's connection whose server cannot fill our memory with what never ends."""

    most_bytes = 2 * 1024 * 1024
    """Of one message: some 400 of each value that we ask for at once."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = len(self.receive_buffer or b"")
        held = self._connection
        if (
            waiting > CHUNK_BYTES
            or held._incoming_size > self.most_bytes
            or len(held._incoming_parts) > MOST_CHUNKS
        ):
            self._fail_all_pending(ua.UaStatusCodeError(ua.StatusCodes.BadResponseTooLarge))
            self.disconnect_socket()


def _bound() -> None:
    # By name: mypy does not let a method be assigned to.
    for name, method in (("read", _read), ("skip", _skip)):
        setattr(Buffer, name, method)
    for name in ("_create_uatype_array_deserializer", "_create_list_deserializer"):
        setattr(ua_binary, name, _bounded(getattr(ua_binary, name)))
    ua_binary._reshape = _reshape
    # What was made before was made with the others.
    for made in (
        ua_binary._create_uatype_deserializer,
        ua_binary._create_type_deserializer,
        ua_binary._create_dataclass_deserializer,
    ):
        made.cache_clear()


_bound()
