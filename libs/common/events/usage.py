"""What those say who count what a tenant uses; tenancy adds it up."""

from datetime import date
from typing import ClassVar, Literal

from libs.common.events.base import Event


class UsageCounted(Event, frozen=True, kw_only=True):
    """A tenant used something on a day (UTC).

    `how` says what `amount` is: `added`, to what was said of the day before; the day's `total` so
    far, which never falls; or the `standing`, how much there is now, whose highest counts for the day.
    """

    type: ClassVar[str] = "usage.counted.v1"
    source: ClassVar[str] = "usage"
    day: date
    resource: str
    how: Literal["added", "total", "standing"]
    amount: int
