"""What a live connection streams: updates, and who is interested in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import msgspec


class Kind(StrEnum):
    """What an update is about; each needs the permission to read that."""

    TELEMETRY = "telemetry_update"
    DEVICE = "device_update"
    ALERT = "alert"


NEEDS = {
    Kind.TELEMETRY: "telemetry:read",
    Kind.DEVICE: "devices:read",
    Kind.ALERT: "alerts:read",
}


class LivePoint(msgspec.Struct, frozen=True):
    """A point as it is streamed. `quality` 0 is good."""

    device_id: UUID
    metric: str
    ts: datetime
    value: float | bool | str
    quality: int = 0


class TelemetryUpdate(msgspec.Struct, frozen=True, tag=Kind.TELEMETRY.value, tag_field="type"):
    """Points of one tenant that came together."""

    points: Sequence[LivePoint]


class DeviceUpdate(msgspec.Struct, frozen=True, tag=Kind.DEVICE.value, tag_field="type"):
    """Something became of a device. `event` is created, updated, deleted, status_changed and so on."""

    event: str
    device_id: UUID
    at: datetime
    data: dict[str, object]


class AlertUpdate(msgspec.Struct, frozen=True, tag=Kind.ALERT.value, tag_field="type"):
    """Something became of an alert. `event` is opened, acknowledged, resolved and so on."""

    event: str
    alert_id: UUID
    device_id: UUID | None
    at: datetime
    data: dict[str, object]


@dataclass(frozen=True, slots=True)
class Interest:
    """What a connection wants to hear: of these devices (None: all), these kinds."""

    devices: frozenset[UUID] | None
    kinds: frozenset[Kind]

    def wants_device(self, device_id: UUID) -> bool:
        """Whether it wants to hear of a device."""
        return self.devices is None or device_id in self.devices


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client subscribes to. Absent: everything."""

    devices: list[UUID] | None = None
    types: list[Kind] | None = None


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client may send."""

    subscribe: Wish


def narrowed(wish: Wish, allowed: frozenset[Kind]) -> Interest:
    """Return the interest that a wish comes to, within what the client may see."""
    kinds = allowed if wish.types is None else frozenset(wish.types) & allowed
    return Interest(None if wish.devices is None else frozenset(wish.devices), kinds)
