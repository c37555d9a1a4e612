"""What a device is to the registry."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class Status(StrEnum):
    """Whether a device is connected, as far as its protocol can tell."""

    UNKNOWN = "unknown"
    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True)
class Device:
    """A registered device. Times are UTC."""

    id: UUID
    tenant_id: UUID
    name: str
    type: str
    description: str
    status: Status
    status_reason: str
    status_at: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int


@dataclass(slots=True)
class Series:
    """A device's metric as the historian numbers it."""

    id: int
    kind: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class Source:
    """A device that proved who it is, with all that taking a point from it needs.

    One object a device and process: `series` grows as metrics are seen, and `is_revoked` turns
    true when it may not go on.
    """

    device_id: UUID
    tenant_id: UUID
    tenant: int
    """The historian's number of the tenant."""
    shard: int
    series: dict[str, Series]
    token_hash: bytes | None = None
    """Of the token it came in by; None if somebody else speaks in its name."""
    is_revoked: bool = False


def shard_of(device_id: UUID, shards: int) -> int:
    """Return the shard a device's points travel in; the same in every process."""
    return device_id.int % shards
