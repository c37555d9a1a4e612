"""The part of time that an analysis is about."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from libs.common.errors import invalid

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(2200, 1, 1, tzinfo=UTC)
USUAL = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Span:
    """The times [start, end), in UTC."""

    start: datetime
    end: datetime

    def buckets(self, width: timedelta) -> int:
        """Return how many buckets of that width it touches, at most."""
        return -((self.start - self.end) // width) + 1


def span_of(start: datetime | None, end: datetime | None, *, now: datetime) -> Span:
    """Return the span asked for; an hour up to `now` where nothing was said.

    Raises Invalid if it has no length, or leaves the years 1970 to 2199.
    """
    for name, moment in (("?from", start), ("?to", end)):
        if moment is not None and not FIRST <= moment < END:
            raise invalid(name, "must lie in the years 1970 to 2199")
    end = now if end is None else end
    start = max(end - USUAL, FIRST) if start is None else start
    if start >= end:
        raise invalid("?from", "must lie before `to`")
    return Span(start, end)
