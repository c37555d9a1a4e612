"""What a device is to the registry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.errors import Conflict
from services.ingest.domain.credential import Proof, Shown
from services.ingest.domain.payload import Point
from services.ingest.domain.profile import Profile
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.quota import Quota

MOST_TAGS = 50


class NameTaken(Conflict):
    """Another device of the tenant has this name."""


class SerialTaken(Conflict):
    """Another device of the tenant has this serial number."""


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
    serial: str | None = None
    profile_id: UUID | None = None
    group_id: UUID | None = None
    tags: tuple[str, ...] = ()
    is_claimed: bool = True
    """False for one made ahead, until whoever mounts it claims it."""
    provisioned_by: UUID | None = None
    """The key by which it registered itself."""
    deleted_at: datetime | None = None
    """When it was removed; it can be restored for a while."""
    last_seen_at: datetime | None = None
    protocol: Protocol | None = None
    """By which protocol it last spoke."""
    payload_format: PayloadFormat | None = None
    """In which form it last wrote."""


@dataclass(slots=True)
class Series:
    """A device's metric as the historian numbers it."""

    id: int
    kind: int
    unit: str | None = None
    """The unit its values are stored in; None: none was ever named."""


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
    proofs: dict[Shown, Proof] = field(default_factory=dict)
    """The credentials it came in by; none if somebody else speaks in its name."""
    is_revoked: bool = False
    profile: Profile | None = None
    """What its type declares, if anything."""
    seen_at: datetime | None = None
    """When it last said something to this process."""
    protocol: Protocol | None = None
    """By which protocol it last spoke to this process."""
    payload_format: PayloadFormat | None = None
    """In which form it last wrote to this process."""
    last_seq: int | None = None
    """The newest value of its own counter that came to this process."""
    quota: Quota | None = None
    """What it may still send to this process; None: nobody asked yet."""
    watch: Callable[[Sequence[Point]], None] | None = None
    """Is told of the points taken from it, for who looks at them live; costs nothing if it is None."""


def shard_of(device_id: UUID, shards: int) -> int:
    """Return the shard a device's points travel in; the same in every process."""
    return device_id.int % shards
