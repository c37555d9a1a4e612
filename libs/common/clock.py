"""The time of day, as something that is handed in.

Domain code takes `now` as an argument; doors read it from a Clock. PostgreSQL has its own,
`sec.iiot_now()`. Tests move both by one offset, kept in `sec.clock`.
"""

from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clock, moved by an offset that is zero outside of tests."""

    def __init__(self, offset: timedelta = timedelta()) -> None:
        self.offset = offset

    def now(self) -> datetime:
        """Return the machine's time plus the offset."""
        return datetime.now(UTC) + self.offset
