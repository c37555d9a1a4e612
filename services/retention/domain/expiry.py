"""When points have had their time. Pure: the present is an argument.

Time ends by whole UTC days: a point goes when the day it lies in is over for as long as it was to be
kept. So a tenant's points live for `keep_days` and up to a day more, and what all tenants are done
with is exactly a number of days.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Keeping:
    """For how long a tenant's points are kept, by which policy; None: by the default."""

    tenant_id: UUID
    keep_days: int
    policy_id: UUID | None


def expired_before(now: datetime, keep_days: int) -> datetime:
    """Return the midnight (UTC) before which points have had their time."""
    return (now - timedelta(days=keep_days)).replace(hour=0, minute=0, second=0, microsecond=0)


def longest_days(keepings: Iterable[Keeping], default_days: int) -> int:
    """Return for how many days a day's points of all tenants must stay."""
    return max((keeping.keep_days for keeping in keepings), default=default_days)


def is_over(day: date, now: datetime, keep_days: int) -> bool:
    """Whether all points of a day (UTC) have had their time."""
    return day < expired_before(now, keep_days).date()
