"""What formats of lines have in common: each line may be of another device, and is named by its number."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from services.ingest.domain.payload import Decoded, Read, Window, as_reading, as_us, check_size

Addressed = dict[str | None, Decoded]
"""Whose points they are, as the payload names the device; None: it names none."""

ReadAddressed = Callable[[bytes, datetime, Window], Addressed]


class Lines:
    """Gathers what lines say, by device."""

    def __init__(self, received_at: datetime) -> None:
        self._received_at = as_us(received_at)
        self._next = 0
        self._sizes: dict[str | None, int] = {}
        self._size = 0
        self.addressed: Addressed = {}

    def next_index(self) -> int:
        """Return the number of the next reading, from 0 on."""
        self._next += 1
        return self._next - 1

    def of(self, device: str | None) -> Decoded:
        """Return where the points of a device go."""
        decoded = self.addressed.get(device)
        if decoded is None:
            decoded = self.addressed[device] = Decoded(self._received_at, indexes=[])
        return decoded

    def end(self, device: str | None, index: int) -> None:
        """Say that a reading of the device has ended. Raises Invalid if all together are too many points."""
        decoded = self.of(device)
        self._size += decoded.size - self._sizes.get(device, 0)
        self._sizes[device] = decoded.size
        check_size(self._size)
        assert decoded.indexes is not None
        decoded.ends.append(len(decoded.points))
        decoded.indexes.append(index)

    def refuse(
        self, device: str | None, index: int, reason: str, detail: str, part: object
    ) -> None:
        """Note that a whole line is not taken."""
        self.of(device).refuse(index, None, reason, detail, part)
        self.end(device, index)

    @staticmethod
    def number(decoded: Decoded, since: int, line: int) -> None:
        """Name the line in what was refused since."""
        for position in range(since, len(decoded.refused)):
            refusal = decoded.refused[position]
            decoded.refused[position] = replace(refusal, detail=f"line {line}: {refusal.detail}")


def for_one(read: ReadAddressed) -> Read:
    """Return the reader for somebody who speaks for one device: lines of others are refused."""

    def read_own(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        addressed = read(payload, received_at, window)
        if not addressed.keys() - {None}:
            return addressed.get(None) or Decoded(as_us(received_at))
        return _without_others(addressed, received_at)

    return read_own


def _without_others(addressed: Addressed, received_at: datetime) -> Decoded:
    own = addressed.get(None) or Decoded(as_us(received_at), indexes=[])
    for device, decoded in addressed.items():
        if device is None:
            continue
        own.refused += decoded.refused
        for position, point in enumerate(decoded.points):
            own.refuse(
                decoded.reading_of(position),
                point.metric,
                "foreign_sender",
                f"a device speaks for itself alone, not for {device}",
                as_reading(point.metric, point.ts, point.value, point.quality, point.unit),
            )
    return own
