"""How much a device may send: so many messages a second on average, and so many at once.

Pure: time is an argument, in seconds of a clock that never goes back (the event loop's).
"""

import math
from dataclasses import dataclass

POINTS_A_MESSAGE = 10
"""A message with more points than these counts as one for each ten: a batch is no way around the quota."""

MESSAGE_BYTES = 1_000
"""So does one of more bytes than these, for each thousand: reading it costs, whatever is in it."""


def messages(points: int) -> int:
    """Return as how many messages so many points count that come as one."""
    return max(1, -(-points // POINTS_A_MESSAGE))


def messages_by_size(payload_bytes: int) -> int:
    """Return as how many messages a payload counts before anybody has read it."""
    return max(1, -(-payload_bytes // MESSAGE_BYTES))


@dataclass(frozen=True, slots=True)
class Rate:
    """What a device may send: messages a second on average, and how many of them at once."""

    per_second: float = 1_000.0
    burst: float = 5_000.0


class Quota:
    """What one device may still send, however many connections it has, by whatever protocol.

    What is taken may be more than what is left; then the device owes it, and is asked to wait until
    that has grown back. So a batch of any size is taken in whole, and the average is kept.
    """

    __slots__ = ("_at", "left", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.left = rate.burst
        """As it was when last asked; below zero the device owes."""
        self._at = now

    def refill(self, now: float) -> None:
        """Let `left` grow by the time that has passed."""
        grown = max(0.0, now - self._at) * self.rate.per_second
        self.left = min(self.rate.burst, self.left + grown)
        self._at = max(self._at, now)

    def spend(self, count: float, now: float) -> None:
        """Count messages that are taken."""
        self.refill(now)
        self.left -= count

    def wait_s(self, now: float) -> float:
        """Return how long to wait before more is taken; 0: not at all."""
        self.refill(now)
        return max(0.0, -self.left / self.rate.per_second)

    def full_s(self, now: float) -> float:
        """Return how long it takes until all of the burst is there again."""
        self.refill(now)
        return (self.rate.burst - self.left) / self.rate.per_second

    @property
    def remaining(self) -> int:
        """How many whole messages are left, none if the device owes."""
        return max(0, math.floor(self.left))
