"""Operations that will go: said in their answers (RFC 9745, RFC 8594) and in the API's description."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from email.utils import format_datetime
from typing import TypeVar

SHORTEST_NOTICE = timedelta(days=180)

_DEPRECATED = "__deprecated__"

E = TypeVar("E", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Deprecation:
    """Since when an operation should be used no more, until when it can be, and what takes its place."""

    since: date
    sunset: date
    instead: str | None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell it in every answer."""
        told = [
            (b"deprecation", f"@{int(_midnight(self.since).timestamp())}".encode()),
            (b"sunset", format_datetime(_midnight(self.sunset), usegmt=True).encode()),
        ]
        if self.instead is not None:
            told.append((b"link", f'<{self.instead}>; rel="successor-version"'.encode()))
        return told

    @property
    def sentence(self) -> str:
        """It in words."""
        successor = f" Use `{self.instead}` instead." if self.instead else ""
        return f"Deprecated since {self.since}; it goes on {self.sunset}.{successor}"


def deprecated(*, since: date, sunset: date, instead: str | None = None) -> Callable[[E], E]:
    """Mark an endpoint that will go. `instead` is the path that takes its place.

    Raises ValueError if it would go before everybody could follow.
    """
    if sunset - since < SHORTEST_NOTICE:
        raise ValueError(f"an operation goes {SHORTEST_NOTICE.days} days after its deprecation")

    def mark(endpoint: E) -> E:
        setattr(endpoint, _DEPRECATED, Deprecation(since, sunset, instead))
        return endpoint

    return mark


def deprecation_of(endpoint: object) -> Deprecation | None:
    """Return what an endpoint says of its end, or None if it stays."""
    said: Deprecation | None = getattr(endpoint, _DEPRECATED, None)
    return said


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
