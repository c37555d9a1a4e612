"""What a server sends to our client without end is cut off, before it fills the memory."""

import asyncio
import struct
from collections.abc import Iterator
from itertools import repeat

import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary, struct_to_binary

from services.ingest.protocols.opcua.bounds import (
    CHUNK_BYTES,
    MOST_CHUNKS,
    MOST_ELEMENTS,
    BoundedProtocol,
)

MIB = 1024 * 1024


class Socket(asyncio.Transport):
    """A transport that only knows whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


def chunks(body: bytes) -> Iterator[bytes]:
    """Return parts of a message that has no last one."""
    return (
        b"MSGC" + struct.pack("<IIIII", 24 + len(body), 0, 0, number, 1) + body
        for number in range(1, 2**31)
    )


@pytest.mark.parametrize(
    ("endless", "most"),
    [
        pytest.param(chunks(b"x" * 8_000), BoundedProtocol.most_bytes + MIB, id="parts"),
        pytest.param(chunks(b""), (MOST_CHUNKS + 2) * 24, id="empty-parts"),
        pytest.param(
            iter([b"MSGF" + struct.pack("<I", 2**31 - 1), *repeat(b"x" * 8_000, 20)]),
            CHUNK_BYTES + 16_000,
            id="one-part",
        ),
    ],
)
async def test_a_message_without_end_is_cut_off(endless: Iterator[bytes], most: int) -> None:
    protocol, socket = BoundedProtocol(), Socket()
    protocol.connection_made(socket)
    waiting = asyncio.get_running_loop().create_future()
    protocol._callbackmap[1] = waiting
    sent = 0
    for data in endless:
        protocol.data_received(data)
        sent += len(data)
        if socket.is_closed:
            break
        assert sent <= most
    assert socket.is_closed
    with pytest.raises(ua.UaStatusCodeError) as refused:
        await waiting
    assert refused.value.code == ua.StatusCodes.BadResponseTooLarge


async def test_a_long_message_in_many_parts_is_taken() -> None:
    protocol, socket = BoundedProtocol(), Socket()
    protocol.connection_made(socket)
    waiting = asyncio.get_running_loop().create_future()
    protocol._callbackmap[1] = waiting
    parts = chunks(b"x" * 8_000)
    for _ in range(100):
        protocol.data_received(next(parts))
    last = next(parts)
    protocol.data_received(b"MSGF" + last[4:])
    assert not socket.is_closed
    assert len(await waiting) == 101 * 8_000


def test_what_lies_within_an_array_counts_with_it() -> None:
    def answer(parts: int, each: int) -> Buffer:
        change = ua.DataChangeNotification()
        change.MonitoredItems = [ua.MonitoredItemNotification() for _ in range(each)]
        response = ua.PublishResponse()
        response.Parameters.NotificationMessage.NotificationData = [change] * parts
        return Buffer(bytes(struct_to_binary(response)))

    struct_from_binary(ua.PublishResponse, answer(4, 1_000))
    with pytest.raises(ua.UaError, match="more than"):
        struct_from_binary(ua.PublishResponse, answer(30, 1_000))
    struct_from_binary(ua.PublishResponse, answer(4, 1_000))


def test_the_numbers_of_a_spectrum_are_as_many_as_there_is_room_for() -> None:
    spectrum = struct_to_binary(ua.DataValue(ua.Variant([1.0] * 2 * MOST_ELEMENTS)))
    read = struct_from_binary(ua.DataValue, Buffer(bytes(spectrum)))
    assert len(read.Value.Value) == 2 * MOST_ELEMENTS
