"""Which devices are looked for, and in which order."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec

from services.ingest.domain.device import Device, Status
from services.ingest.domain.protocol import Protocol

NEVER = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
"""When a device was seen that was never seen."""


class SortedBy(StrEnum):
    """What decides the order; the device's id decides among equals. Names in any case."""

    CREATED_AT = "created_at"
    NAME = "name"
    LAST_SEEN_AT = "last_seen_at"


class Place(msgspec.Struct, frozen=True):
    """A place in the order: behind the device of this id."""

    sort: SortedBy
    descending: bool
    key: str
    id: UUID


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a device must have to be found; what is left out does not matter."""

    q: str | None = None
    """A part of its name or serial number, in any case."""
    type: str | None = None
    profile_id: UUID | None = None
    group_id: UUID | None = None
    """It is in this group, or in one below it."""
    tags: tuple[str, ...] = ()
    """All of them."""
    any_tag: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    """Each `name=value`, in any scope."""
    status: Status | None = None
    protocol: Protocol | None = None
    deleted: bool = False
    """Those that were removed, instead of those that are there."""
    sort: SortedBy = SortedBy.CREATED_AT
    descending: bool = False
    after_key: str | None = None
    after_id: UUID | None = None

    def has(self, place: Place) -> bool:
        """Whether a place can be one in this order; somebody may have made it himself."""
        if (place.sort, place.descending) != (self.sort, self.descending):
            return False
        try:
            return (
                self.sort is SortedBy.NAME or datetime.fromisoformat(place.key).tzinfo is not None
            )
        except ValueError:
            return False

    def behind(self, place: Place | None) -> "Wanted":
        """Return the same from a place on."""
        if place is None:
            return self
        return msgspec.structs.replace(self, after_key=place.key, after_id=place.id)

    def place_of(self, device: Device) -> Place:
        """Return where a device stands in the order."""
        match self.sort:
            case SortedBy.NAME:
                # Names differ in more than their case, so what is sorted by has the serial number too.
                key = f"{device.name}\n{device.serial or ''}"
            case SortedBy.LAST_SEEN_AT:
                key = (device.last_seen_at or NEVER).isoformat()
            case SortedBy.CREATED_AT:
                key = device.created_at.isoformat()
        return Place(self.sort, self.descending, key, device.id)
