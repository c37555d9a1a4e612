"""What became of all that a device sent, counted; and what it says is missing."""

from dataclasses import dataclass
from datetime import datetime

FURTHEST_BACK = 1_000
"""A counter that falls by more than this begins anew; by less, a message comes a second time."""
FURTHEST_AHEAD = 1_000_000
"""A counter that rises by more than this at once counts something else: nothing is known to be missing.
Who could name any number would fill the ledger, which is one for all, with a few messages."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was received within an hour (UTC), or in all of them: points, whole messages not.

    What cannot be read at all counts as one. `missing` is how many messages or readings the
    device's own counter left out, `gaps` in how many places.
    """

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    gaps: int = 0
    missing: int = 0

    @property
    def received(self) -> int:
        """All that came, whatever became of it."""
        return self.accepted + self.duplicates + self.quarantined

    def __add__(self, other: "Counts") -> "Counts":
        """Return both together."""
        return Counts(
            self.accepted + other.accepted,
            self.duplicates + other.duplicates,
            self.quarantined + other.quarantined,
            self.gaps + other.gaps,
            self.missing + other.missing,
        )


@dataclass(frozen=True, slots=True)
class Hour:
    """What was received within one hour, which begins at `hour` (UTC)."""

    hour: datetime
    counts: Counts


def missing_before(seq: int, last: int | None) -> int:
    """Return how many values of a device's counter were left out between the last seen and this."""
    return 0 if last is None or not 0 < seq - last <= FURTHEST_AHEAD else seq - last - 1


def newest(seq: int, last: int | None) -> int:
    """Return the value of a device's counter to go on from.

    One that falls to 0 or 1, or far, began anew. A small step back is a message that came late, or
    a second time.
    """
    if last is None or seq > last or seq <= 1 or last - seq > FURTHEST_BACK:
        return seq
    return last
