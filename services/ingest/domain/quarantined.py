"""What was acknowledged and could not be stored: kept with its reason until somebody decides."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused point or message. `payload` is as the device sent it, or the part refused."""

    id: UUID
    device_id: UUID
    received_at: datetime
    reason: str
    detail: str
    metric: str | None
    payload: bytes
