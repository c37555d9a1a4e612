"""What retention says: data that is no more."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class DataErased(Event, frozen=True, kw_only=True):
    """Data of a tenant was erased because its time was over.

    It was of [start, before); `start` None: of all times before. `how` is rows_deleted, then `rows`
    says how many; or day_dropped: a day of all tenants at once, whose rows nobody counted.
    """

    type: ClassVar[str] = "data.erased.v1"
    source: ClassVar[str] = "retention"
    data_type: str
    how: str
    start: datetime | None = None
    before: datetime
    rows: int | None = None
    policy_id: UUID | None = None
    """The tenant's policy; None: the installation's default."""
