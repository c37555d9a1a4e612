"""What the devices' broker delivers, taken from the stream of frames before the AMQP library reads it.

The broker hands a message's properties on as the device wrote them: tables nested thousands deep,
texts and times that are none. A library that falls over them loses the connection, with everybody's
messages in it, and again each time that the message is delivered again. So here only those
properties are read that matter, nothing is believed of their form, and no more is kept of a body
than is taken. All other frames pass. It is faster than the library, too.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, NamedTuple, SupportsIndex

from aiormq.connection import TransportFactory
from yarl import URL

METHOD, HEADER, BODY = 1, 2, 3
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_DELIVER = b"\x00\x3c\x00\x3c"
"""The class `basic` and its method `deliver`."""
_FRAME = Struct(">BHI")
_SIZE_AND_FLAGS = Struct(">QH")
_U32 = Struct(">I")
_U64 = Struct(">Q")
_I64 = Struct(">q")

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13
_OCTETS = (1 << 12, 1 << 11)  # delivery mode, priority
_TEXTS = tuple(
    1 << bit for bit in (10, 9, 8, 7)
)  # correlation id, reply to, expiration, message id
_TIMESTAMP, _TYPE, _USER_ID = 1 << 6, 1 << 5, 1 << 4

_FIXED_BYTES = dict(zip(b"tbBsuIilfdDTV", (1, 1, 1, 2, 2, 4, 4, 8, 4, 8, 5, 8, 0), strict=True))
"""How long a header's value of that type is."""
_COUNTED_BYTES = frozenset(b"SxAF")
"""Values that begin with how long they are."""
_DELIVERY_COUNT = b"x-delivery-count"


class Delivery(NamedTuple):
    """A message as it was delivered."""

    channel: int
    """The number of the channel of AMQP's."""
    tag: int
    routing_key: str
    content_type: str | None
    user_id: str | None
    """The sender, as the broker has checked; None if the message does not name it."""
    failures: int
    """How often it was delivered before, and given back: because its reader died, as a rule."""
    size: int
    """Of the body, in bytes."""
    body: bytes
    """All of it, or its beginning."""


class Deliveries:
    """Takes deliveries out of a stream of frames. Bytes in, bytes for the others out."""

    def __init__(self, take: Callable[[Delivery], None], most_bytes: int) -> None:
        """`take` gets each delivery, with no more than `most_bytes` of its body."""
        self._take = take
        self._most_bytes = most_bytes
        self._rest = b""
        self._open: dict[int, _Unfinished] = {}
        """Deliveries of which more is to come, by channel."""
        self._is_over = False

    def feed(self, data: bytes) -> bytes:
        """Take what was received; return what is not part of a delivery."""
        if self._is_over:
            return data
        data = self._rest + data
        at, passed, end = 0, [], len(data)
        while end - at >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(data, at)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT[0]):
                # No frame, such as a broker's word that it speaks another version: others' business.
                self._is_over = True
                passed.append(data[at:])
                at = end
                break
            begin = at + _FRAME.size
            if end - begin <= size:
                break
            if not self._is_taken(kind, channel, data, begin, begin + size):
                passed.append(data[at : begin + size + 1])
            at = begin + size + 1
        self._rest = data[at:]
        return b"".join(passed)

    def _is_taken(self, kind: int, channel: int, data: bytes, begin: int, end: int) -> bool:
        if kind == METHOD:
            if data[begin : begin + 4] != _DELIVER:
                return False
            self._open[channel] = _Unfinished(channel, data, begin + 4)
            return True
        unfinished = self._open.get(channel)
        if unfinished is None:
            return False
        if kind == HEADER:
            unfinished.read_header(data[begin:end])
        elif kind == BODY:
            unfinished.add(data[begin:end], self._most_bytes)
        else:
            return False
        if unfinished.is_whole:
            del self._open[channel]
            self._take(unfinished.delivery())
        return True


class _Unfinished:
    """A delivery that has begun."""

    __slots__ = (
        "_body",
        "_channel",
        "_content_type",
        "_failures",
        "_is_redelivered",
        "_kept",
        "_routing_key",
        "_seen",
        "_size",
        "_tag",
        "_user_id",
    )

    def __init__(self, channel: int, data: bytes, at: int) -> None:
        self._channel = channel
        at += 1 + data[at]  # the consumer
        self._tag: int = _U64.unpack_from(data, at)[0]
        self._is_redelivered = data[at + 8] & 1
        at += 9
        at += 1 + data[at]  # the exchange
        self._routing_key = _text(data, at)
        self._content_type: str | None = None
        self._user_id: str | None = None
        self._failures = 0
        self._size = 0
        self._body: list[bytes] = []
        self._kept = self._seen = 0

    @property
    def is_whole(self) -> bool:
        return self._seen >= self._size

    def read_header(self, header: bytes) -> None:
        """Read how large the body is, and what matters of the properties."""
        self._size, flags = _SIZE_AND_FLAGS.unpack_from(header, 4)
        try:
            self._read_properties(header, flags)
        except (IndexError, struct.error):
            # They end before they should. Without `user_id` a message is nobody's.
            self._user_id = None

    def _read_properties(self, header: bytes, flags: int) -> None:
        at = 4 + _SIZE_AND_FLAGS.size
        if flags & _CONTENT_TYPE:
            self._content_type = _text(header, at)
            at += 1 + header[at]
        if flags & _CONTENT_ENCODING:
            at += 1 + header[at]
        if flags & _HEADERS:
            length = _U32.unpack_from(header, at)[0]
            at += 4
            if self._is_redelivered:
                # Else it is not the broker's, but the device's own.
                self._failures = _delivery_count(header[at : at + length])
            at += length
        for flag in _OCTETS:
            if flags & flag:
                at += 1
        for flag in _TEXTS:
            if flags & flag:
                at += 1 + header[at]
        if flags & _TIMESTAMP:
            at += 8
        if flags & _TYPE:
            at += 1 + header[at]
        if flags & _USER_ID:
            self._user_id = _text(header, at)

    def add(self, part: bytes, most_bytes: int) -> None:
        """Take a part of the body."""
        self._seen += len(part)
        if self._kept < most_bytes:
            kept = part[: most_bytes - self._kept]
            self._kept += len(kept)
            self._body.append(kept)

    def delivery(self) -> Delivery:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Delivery(
            self._channel,
            self._tag,
            self._routing_key,
            self._content_type,
            self._user_id,
            self._failures,
            self._size,
            body,
        )


def _text(data: bytes, at: int) -> str:
    """Return the short text that begins there. Raises IndexError if it is cut off."""
    text = data[at + 1 : at + 1 + data[at]]
    if len(text) != data[at]:
        raise IndexError
    return text.decode("utf-8", "replace")


def _delivery_count(headers: bytes) -> int:
    """Return the broker's count in a table of headers; 0 if there is none that can be read."""
    at = 0
    try:
        while at < len(headers):
            name = headers[at + 1 : at + 1 + headers[at]]
            at += 1 + headers[at]
            kind = headers[at]
            at += 1
            if name == _DELIVERY_COUNT and kind == ord("l"):
                return max(0, int(_I64.unpack_from(headers, at)[0]))
            if kind in _COUNTED_BYTES:
                at += 4 + int(_U32.unpack_from(headers, at)[0])
            else:
                at += _FIXED_BYTES[kind]
    except (IndexError, KeyError, struct.error):
        pass
    return 0


class _Reader(asyncio.StreamReader):
    """Gives the library all frames but deliveries."""

    def __init__(self, deliveries: Deliveries, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._deliveries = deliveries
        self._loop_time = loop.time
        self._heard_at = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        passed = self._deliveries.feed(bytes(data))
        now = self._loop_time()
        if not passed and now - self._heard_at >= 1.0:
            # The broker sends none of its own while it has deliveries to send.
            passed = HEARTBEAT
        if passed:
            self._heard_at = now
            super().feed_data(passed)


class DeliveryTransport(TransportFactory):
    """Connects the AMQP library to a broker, and keeps deliveries for us.

    `take` is called from the event loop with each; it must not raise.
    """

    def __init__(self, take: Callable[[Delivery], None], most_bytes: int) -> None:
        self._take = take
        self._most_bytes = most_bytes

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the connection, with TLS where the URL says amqps."""
        contexts = kwargs.pop("ssl_context_provider")
        context = await contexts.get_context() if url.scheme == "amqps" else None
        host, port = url.host or "localhost", url.port or 5672
        loop = asyncio.get_running_loop()
        reader = _Reader(Deliveries(self._take, self._most_bytes), loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(
            lambda: protocol, host, port, ssl=context, **kwargs
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
