"""What is remembered of a device's connection for its next one."""

from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from services.ingest.domain.payload import EPOCH, as_us

Receipt = tuple[datetime, int | None]
"""When a message was first received, and a fingerprint of its payload; None fits any."""


class Receipts:
    """When recently acknowledged messages of one device were first received.

    A device that missed a PUBACK sends its message again, with DUP and the same packet id, mostly
    on its next connection: hand the old session's `receipts` to the new one. A packet id alone says
    little, since it is free for another message once acknowledged, so the payload must be equal.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[int, Receipt] = {}

    def first_received(self, packet_id: int, fingerprint: int) -> datetime | None:
        """Return when the message came first, None if it is not remembered."""
        entry = self._entries.get(packet_id)
        if entry is None or entry[1] not in (fingerprint, None):
            return None
        return entry[0]

    def remember(self, packet_id: int, entry: Receipt) -> None:
        """Keep when a message was received; the oldest goes when there are too many."""
        entries = self._entries
        entries.pop(packet_id, None)
        entries[packet_id] = entry
        # Two, so that what `remember_unacknowledged` put beyond the size goes little by little.
        for _ in range(min(2, len(entries) - self._size)):
            del entries[next(iter(entries))]

    def remember_unacknowledged(self, entries: dict[int, Receipt]) -> None:
        """Keep all that were on their way when the connection ended: these will come again."""
        kept = self._entries
        for packet_id, entry in entries.items():
            kept.pop(packet_id, None)
            kept[packet_id] = entry
        for packet_id in list(kept)[: -max(self._size, len(entries), 1)]:
            del kept[packet_id]

    def recall(self, unfinished: dict[int, int]) -> None:
        """Take up what another process remembered of messages not acknowledged."""
        for packet_id, us in unfinished.items():
            if packet_id not in self._entries:
                self._entries[packet_id] = (EPOCH + timedelta(microseconds=us), None)


class Sent(msgspec.Struct, array_like=True):
    """A command that the device has not answered to the end."""

    command_id: UUID
    qos: int
    is_received: bool = False
    """The device has said PUBREC: what remains is PUBREL and PUBCOMP."""


class Kept(msgspec.Struct, array_like=True):
    """The state of a session that outlives its connection, as it is written down."""

    subscriptions: dict[str, int] = {}
    """Topic filter to granted QoS."""
    received: list[int] = []
    """Packet ids of QoS 2 messages that are safe and that the device has not released."""
    unfinished: dict[int, int] = {}
    """Packet ids of messages not acknowledged yet: when they were received, in µs since 1970 UTC."""
    sent: dict[int, Sent] = {}
    """Commands by packet id."""
    last_command_id: int = 0

    def to_bytes(self) -> bytes:
        """Return it as it is stored."""
        return _encoder.encode(self)

    @staticmethod
    def from_bytes(stored: bytes) -> "Kept":
        """Read it back. Raises msgspec.MsgspecError if it is something else."""
        return _decoder.decode(stored)


def unfinished_of(entries: dict[int, Receipt]) -> dict[int, int]:
    """Return when each message was received, by packet id, as Kept has it."""
    return {packet_id: as_us(received_at) for packet_id, (received_at, _) in entries.items()}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Kept)
