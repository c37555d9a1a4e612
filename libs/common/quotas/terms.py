"""Quotas, as plain values: of what, how much, and where a tenant stands."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

WARN_PERCENT = 80
"""From which part of a quota on a tenant is warned, unless the plan says."""


class Resource(StrEnum):
    """What a plan limits, and what usage is counted of."""

    DEVICES = "devices"
    USERS = "users"
    RULES = "rules"
    METRICS = "metrics"
    API_KEYS = "api_keys"
    STORAGE_BYTES = "storage_bytes"
    POINTS_PER_DAY = "points_per_day"
    POINTS_PER_SECOND = "points_per_second"
    API_CALLS_PER_DAY = "api_calls_per_day"

    @property
    def is_per_day(self) -> bool:
        """Whether it is used up by a day (UTC), and there again the next."""
        return self in (Resource.POINTS_PER_DAY, Resource.API_CALLS_PER_DAY)


MEANING: Mapping[Resource, str] = MappingProxyType(
    {
        Resource.DEVICES: "devices",
        Resource.USERS: "users, invited ones among them",
        Resource.RULES: "rules",
        Resource.METRICS: "metrics of all devices together",
        Resource.API_KEYS: "API keys",
        Resource.STORAGE_BYTES: "bytes of stored points",
        Resource.POINTS_PER_DAY: "points a day",
        Resource.POINTS_PER_SECOND: "points a second",
        Resource.API_CALLS_PER_DAY: "API calls a day",
    }
)
"""What is counted, for people."""


class Level(StrEnum):
    """Where a tenant stands against a quota."""

    WITHIN = "within"
    WARNING = "warning"
    REACHED = "reached"


@dataclass(frozen=True, slots=True)
class Terms:
    """How much of something a tenant may have (None: any amount), and from where on it is warned."""

    most: int | None
    warn_percent: int = WARN_PERCENT

    def level(self, used: int) -> Level:
        """Return where a tenant stands that uses so much. Who uses nothing is within."""
        if self.most is None or used <= 0:
            return Level.WITHIN
        if used >= self.most:
            return Level.REACHED
        if used * 100 >= self.most * self.warn_percent:
            return Level.WARNING
        return Level.WITHIN


UNLIMITED = Terms(None)


def next_day(now: datetime) -> datetime:
    """Return when the next day begins (UTC)."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=1)
