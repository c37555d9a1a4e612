"""How many reports a device may still make: so many at once, and so many a minute after that."""

from dataclasses import dataclass
from datetime import datetime, timedelta

_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of it, as it was at a time."""

    left: float
    at: datetime

    def later(self, at: datetime, a_minute: int) -> "Allowance":
        """Return what it has grown to by `at`; never more than `a_minute`."""
        grown = max(timedelta(), at - self.at) / _MINUTE * a_minute
        return Allowance(min(float(a_minute), self.left + grown), max(self.at, at))

    def spent(self) -> "Allowance | None":
        """Return it with one report less; None if there is not one left."""
        return Allowance(self.left - 1, self.at) if self.left >= 1 else None
