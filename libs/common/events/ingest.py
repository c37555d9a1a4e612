"""What ingest says: telemetry in batches, and what becomes of devices."""

import sys
from array import array
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID, uuid4

import msgspec

from libs.common.events.base import Event, Message

if sys.byteorder != "little":  # pragma: no cover - no such machine is supported
    raise RuntimeError("telemetry batches are little-endian columns, which this machine is not")


class Text(msgspec.Struct, frozen=True, array_like=True):
    """A point whose value is a string. `ts` in µs since 1970 UTC."""

    tenant: int
    series: int
    ts: int
    value: str
    quality: int


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """What could not be stored of an acknowledged message; the writer puts it into quarantine.

    `payload` is the message as it came (or the part that was refused, as JSON), or as much of its
    beginning as is kept; then `cut_from` is how many bytes it had. `received_at` is the time, in µs
    since 1970 UTC, of what has no `ts` of its own; None: that of the batch. `channel` is what the
    message was about: telemetry, alerts or status.
    """

    tenant_id: UUID
    device_id: UUID
    reason: str
    detail: str
    metric: str | None
    payload: bytes
    channel: str = "telemetry"
    received_at: int | None = None
    cut_from: int | None = None


class TelemetryReceived(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Points of one shard's devices, of all its tenants, in the order they were accepted.

    The columns are little-endian and of equal length: `tenants` and `series` int32 (the
    historian's numbers), `ts` int64 µs since 1970 UTC, `values` float64 (bools 0 and 1),
    `quality` uint8. `at` is when the batch was closed; its points were received just before.
    """

    type: ClassVar[str] = "telemetry.received.v1"
    source: ClassVar[str] = "ingest"

    id: UUID = msgspec.field(default_factory=uuid4)
    at: datetime
    shard: int
    tenants: bytes
    series: bytes
    ts: bytes
    values: bytes
    quality: bytes
    texts: Sequence[Text] = ()
    refused: Sequence[Refused] = ()

    def __len__(self) -> int:
        """How many numeric points it holds."""
        return len(self.quality)

    def to_message(self) -> Message:
        """Encode it for the bus."""
        return Message(
            id=self.id,
            type=self.type,
            source=self.source,
            time=self.at,
            shard=self.shard,
            body=_encoder.encode(self),
        )

    @staticmethod
    def from_message(message: Message) -> "TelemetryReceived":
        """Decode it. Raises msgspec.ValidationError if the message is another."""
        return _decoder.decode(message.body)

    def columns(self) -> "tuple[array[int], array[int], array[int], array[float], bytes]":
        """Return tenants, series, ts, values, quality as arrays to iterate over."""
        tenants, series, ts, values = array("i"), array("i"), array("q"), array("d")
        tenants.frombytes(self.tenants)
        series.frombytes(self.series)
        ts.frombytes(self.ts)
        values.frombytes(self.values)
        return tenants, series, ts, values, self.quality


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(TelemetryReceived)


class DeviceCreated(Event, frozen=True, kw_only=True):
    """A device was registered."""

    type: ClassVar[str] = "device.created.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    name: str
    device_type: str


class DeviceUpdated(Event, frozen=True, kw_only=True):
    """A device's name or description changed."""

    type: ClassVar[str] = "device.updated.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    name: str
    device_type: str


class DeviceDeleted(Event, frozen=True, kw_only=True):
    """A device was removed: its credentials are void, its connections are cut."""

    type: ClassVar[str] = "device.deleted.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID


class DeviceCredentialRotated(Event, frozen=True, kw_only=True):
    """A device got a new token; what was connected by the old one is cut."""

    type: ClassVar[str] = "device.credential_rotated.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID


class DevicesShutOut(Event, frozen=True, kw_only=True):
    """No device of the tenant gets in from now on; what they have open is cut.

    Said when ingest has noted it, so that no look-up after this event lets one in. `reason` is
    suspended or deleted.
    """

    type: ClassVar[str] = "devices.shut_out.v1"
    source: ClassVar[str] = "ingest"
    reason: str


class DeviceStatusChanged(Event, frozen=True, kw_only=True):
    """A device came online or went offline, or said so itself."""

    type: ClassVar[str] = "device.status_changed.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    status: str
    reason: str


class DeviceAlertReported(Event, frozen=True, kw_only=True):
    """A device raised an alarm of its own, on its `alerts` topic."""

    type: ClassVar[str] = "device.alert_reported.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    severity: str
    message: str
    key: str
    """What the alarm is about; the same key again is the same alarm."""
    active: bool = True
