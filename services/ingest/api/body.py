"""The body of a request as it was before it was packed."""

import asyncio
import zlib
from datetime import datetime

from fastapi import Request

from libs.common.errors import Malformed, TooLarge, UnsupportedMedia
from services.ingest.domain.lines import Addressed, ReadAddressed
from services.ingest.domain.payload import Window

MOST_BYTES = 4 * 1024 * 1024
"""What a body may unpack to; on the wire it has the service's limit."""

READ_ASIDE_BYTES = 65_536
"""What is larger is read in a thread: it takes long, and all other devices would wait."""

_GZIP = 16 + zlib.MAX_WBITS
_ENCODINGS = frozenset({"gzip", "x-gzip"})


async def read_body(request: Request) -> bytes:
    """Return the body, unpacked if it is gzip.

    Raises UnsupportedMedia for another Content-Encoding, Malformed if it is no gzip, TooLarge as soon
    as more has come out than is taken.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"", "identity"}:
        return await request.body()
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia("a body is sent as it is, or with Content-Encoding: gzip")
    inflater = zlib.decompressobj(_GZIP)
    unpacked = bytearray()
    async for chunk in request.stream():
        packed = chunk
        while packed:
            if inflater.eof:
                # A gzip file may have several members, one after the other.
                inflater = zlib.decompressobj(_GZIP)
            try:
                unpacked += inflater.decompress(packed, MOST_BYTES + 1 - len(unpacked))
            except zlib.error as error:
                raise Malformed("the body is not gzip") from error
            if len(unpacked) > MOST_BYTES:
                raise TooLarge(f"the body unpacks to more than {MOST_BYTES} bytes")
            packed = inflater.unused_data or inflater.unconsumed_tail
    if not inflater.eof:
        raise Malformed("the body is not gzip, or its end is missing")
    return bytes(unpacked)


async def read_aside(
    read: ReadAddressed, body: bytes, received_at: datetime, window: Window
) -> Addressed:
    """Return what a reader makes of a body; of a large one beside the event loop."""
    if len(body) <= READ_ASIDE_BYTES:
        return read(body, received_at, window)
    return await asyncio.to_thread(read, body, received_at, window)
