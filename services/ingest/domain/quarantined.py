"""What was acknowledged and could not be stored: kept with its reason until somebody decides."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.ingest.domain.channel import Channel


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused message, or a part of one; its payload is kept beside it.

    `received_at` is the time of what has no time of its own. `size` is how many bytes of payload
    are kept, `cut_from` how many there were if these are only the beginning.
    """

    id: UUID
    device_id: UUID
    received_at: datetime
    channel: Channel
    reason: str
    detail: str
    metric: str | None
    size: int
    cut_from: int | None


@dataclass(frozen=True, slots=True)
class Overflow:
    """How many entries gave way to newer ones, from when to when."""

    dropped: int
    since: datetime
    latest: datetime
