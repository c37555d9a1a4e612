"""Reading what a subscription publishes, quickly. Pure.

The library builds a tree of objects for each value, which costs many times as much as reading it
here, and more than all that is done with it afterwards. Nearly all messages are plain: scalars with
a status and times. Any other message is left to the library.
"""

import struct
from dataclasses import dataclass, field
from datetime import timedelta

from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_from_binary

from services.ingest.domain.payload import EPOCH
from services.ingest.protocols.opcua.alarms import Raised
from services.ingest.protocols.opcua.bounds import MOST_ELEMENTS
from services.ingest.protocols.opcua.values import (
    FIRST_BELIEVED_US,
    Change,
    Scalar,
    change_of,
    us_of,
)

_PUBLISH_RESPONSE = b"\x01\x00" + struct.pack(
    "<H", ua.ObjectIds.PublishResponse_Encoding_DefaultBinary
)
_DATA_CHANGE = b"\x01\x00" + struct.pack(
    "<H", ua.ObjectIds.DataChangeNotification_Encoding_DefaultBinary
)
_PLAIN_HEADER = b"\x00" + struct.pack("<i", 0) + b"\x00\x00\x00"
"""No diagnostics, no strings, no additional header."""
_PLAIN_HEADER_NULL = b"\x00" + struct.pack("<i", -1) + b"\x00\x00\x00"

_TICKS_1970 = 116_444_736_000_000_000

_u32 = struct.Struct("<I").unpack_from
_i32 = struct.Struct("<i").unpack_from
_i64 = struct.Struct("<q").unpack_from
_head = struct.Struct("<IB").unpack_from

_FIXED = {
    1: struct.Struct("<?"),
    2: struct.Struct("<b"),
    3: struct.Struct("<B"),
    4: struct.Struct("<h"),
    5: struct.Struct("<H"),
    6: struct.Struct("<i"),
    7: struct.Struct("<I"),
    8: struct.Struct("<q"),
    9: struct.Struct("<Q"),
    10: struct.Struct("<f"),
    11: struct.Struct("<d"),
}
_READERS = {kind: (each.unpack_from, each.size) for kind, each in _FIXED.items()}
_STRING = 12
_DATE_TIME = 13


class _NotPlain(Exception):
    """The library has to read it."""


@dataclass(slots=True)
class Published:
    """What the server answered a Publish request with."""

    service_result: int
    subscription_id: int = 0
    sequence: int = 0
    changes: list[Change] = field(default_factory=list)
    events: list[Raised] = field(default_factory=list)
    has_data: bool = False
    """Whether it is to be acknowledged; else it only says that the server is alive."""
    published_us: int | None = None
    """When, by the server's clock; µs since 1970 UTC."""
    status_change: int | None = None
    """The subscription itself is not well: what the server says of it."""
    has_more: bool = False
    """Whether there is more that it had to say by then, which the next answer brings."""


def read_published(data: bytes) -> Published:
    """Read a PublishResponse. Raises UaError if it holds too much, and what the library raises."""
    try:
        return _read_plain(data)
    except (_NotPlain, struct.error, IndexError, UnicodeDecodeError):
        return _read_any(data)


def _read_plain(data: bytes) -> Published:
    if data[:4] != _PUBLISH_RESPONSE:
        raise _NotPlain
    (result,) = _u32(data, 16)
    if result or data[20:28] not in (_PLAIN_HEADER, _PLAIN_HEADER_NULL):
        raise _NotPlain
    at = 28
    (subscription_id,) = _u32(data, at)
    (available,) = _i32(data, at + 4)
    at += 8 + 4 * max(0, available)
    has_more = bool(data[at])
    at += 1
    (sequence,) = _u32(data, at)
    published = Published(
        0, subscription_id, sequence, published_us=_time(data, at + 4), has_more=has_more
    )
    (parts,) = _i32(data, at + 12)
    at += 16
    for _ in range(max(0, parts)):
        if data[at : at + 4] != _DATA_CHANGE or data[at + 4] != 1:
            raise _NotPlain
        (length,) = _i32(data, at + 5)
        end = at + 9 + length
        at = _read_changes(data, at + 9, published.changes)
        if at != end:
            raise _NotPlain
        published.has_data = True
    return published


def _read_changes(data: bytes, at: int, changes: list[Change]) -> int:
    """Read a DataChangeNotification; return where it ends."""
    (count,) = _i32(data, at)
    if len(changes) + count > MOST_ELEMENTS:
        raise ua.UaError(f"more than {MOST_ELEMENTS} notifications at once")
    at += 4
    append, readers = changes.append, _READERS
    for _ in range(count):
        handle, mask = _head(data, at)
        at += 5
        value: Scalar = None
        if mask & 1:
            kind = data[at]
            at += 1
            reader = readers.get(kind)
            if reader is not None:
                (value,) = reader[0](data, at)
                at += reader[1]
            elif kind == _STRING:
                (length,) = _i32(data, at)
                at += 4
                if length >= 0:
                    value = data[at : at + length].decode()
                    if len(data) < at + length:
                        raise _NotPlain
                    at += length
            elif kind == _DATE_TIME:
                (ticks,) = _i64(data, at)
                at += 8
                value = _text_of(ticks)
            else:
                raise _NotPlain
        status = 0
        if mask & 2:
            (status,) = _u32(data, at)
            at += 4
        source = server = None
        if mask & 4:
            source = _time(data, at)
            at += 8
        if mask & 16:  # picoseconds, which no point keeps
            at += 2
        if mask & 8:
            server = _time(data, at)
            at += 8
        if mask & 32:
            at += 2
        append(Change(handle, value, status, source, server))
    # After the changes come diagnostics, of which there are none.
    if _i32(data, at)[0] > 0:
        raise _NotPlain
    return at + 4


def _time(data: bytes, at: int) -> int | None:
    us: int = (_i64(data, at)[0] - _TICKS_1970) // 10
    return us if us >= FIRST_BELIEVED_US else None


def _text_of(ticks: int) -> str:
    try:
        return (EPOCH + timedelta(microseconds=(ticks - _TICKS_1970) // 10)).isoformat()
    except OverflowError:
        raise _NotPlain from None


def _read_any(data: bytes) -> Published:
    if data[:4] != _PUBLISH_RESPONSE:
        raise ua.UaError("no answer to a Publish request")
    response = struct_from_binary(ua.PublishResponse, Buffer(data))
    parameters = response.Parameters
    message = parameters.NotificationMessage
    published = Published(
        response.ResponseHeader.ServiceResult.value,
        parameters.SubscriptionId,
        message.SequenceNumber,
        has_data=bool(message.NotificationData),
        published_us=us_of(message.PublishTime),
        has_more=bool(parameters.MoreNotifications),
    )
    for part in message.NotificationData or []:
        if isinstance(part, ua.DataChangeNotification):
            published.changes += [
                change_of(item.ClientHandle, item.Value) for item in part.MonitoredItems or []
            ]
        elif isinstance(part, ua.EventNotificationList):
            published.events += [
                Raised(event.ClientHandle, [field.Value for field in event.EventFields or []])
                for event in part.Events or []
            ]
        elif isinstance(part, ua.StatusChangeNotification):
            published.status_change = part.Status.value
    return published
