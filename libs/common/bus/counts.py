"""What a subscription went through: plain numbers, for metrics and for tests."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """The messages of one subscription since the start of this process."""

    handled: int = 0
    retried: int = 0
    dead: int = 0
    pauses: int = 0
