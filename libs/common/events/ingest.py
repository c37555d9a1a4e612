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
    message was about: telemetry, alerts, status, attributes or replies.
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
    points: int = 1
    """How many points it stands for; what could not be read at all counts as one."""


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """A device said, by its own counter, that so many of its messages or readings are missing."""

    tenant_id: UUID
    device_id: UUID
    missing: int


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
    gaps: Sequence[Gap] = ()

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
    group_ids: Sequence[UUID] = ()
    """The groups it is in, from the root down."""
    tags: Sequence[str] = ()
    profile_id: UUID | None = None


class DeviceUpdated(Event, frozen=True, kw_only=True):
    """A device's name, description, group, tags or profile changed."""

    type: ClassVar[str] = "device.updated.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    name: str
    device_type: str
    group_ids: Sequence[UUID] = ()
    """The groups it is in, from the root down."""
    tags: Sequence[str] = ()
    profile_id: UUID | None = None


class DeviceGroupMoved(Event, frozen=True, kw_only=True):
    """A group of devices is below another one than before, with all groups and devices below it.

    Of whatever was in a group whose path began with `was`, the path begins with `group_ids` instead.
    Said once, and not of each device.
    """

    type: ClassVar[str] = "device_group.moved.v1"
    source: ClassVar[str] = "ingest"
    group_id: UUID
    was: Sequence[UUID]
    """The groups from the root down to itself, before."""
    group_ids: Sequence[UUID]
    """The same now."""


class Place(msgspec.Struct, frozen=True):
    """Devices that are in the same groups, named from the root down; none: in no group."""

    groups: Sequence[UUID]
    device_ids: Sequence[UUID]


class DevicesPlaced(Event, frozen=True, kw_only=True):
    """Where devices are now, said of each whose groups, or what these are below, became others.

    Of what is said of a device, that with the highest `number` stands. A removed device stays where
    it was, with what is kept of it.
    """

    type: ClassVar[str] = "devices.placed.v1"
    source: ClassVar[str] = "ingest"
    number: int
    places: Sequence[Place]


class DeviceDeleted(Event, frozen=True, kw_only=True):
    """A device was removed: its credentials are void, its connections are cut.

    It may be restored; then `device.created` is said again.
    """

    type: ClassVar[str] = "device.deleted.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID


class DeviceCredentialRotated(Event, frozen=True, kw_only=True):
    """Credentials of a device end; what is connected by them is cut then.

    None named: all it had. `ends_at` is None if they have ended.
    """

    type: ClassVar[str] = "device.credential_rotated.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    credential_ids: Sequence[UUID] = ()
    ends_at: datetime | None = None


class DeviceProfileChanged(Event, frozen=True, kw_only=True):
    """A profile declares something else than before: its devices' points are taken accordingly."""

    type: ClassVar[str] = "device_profile.changed.v1"
    source: ClassVar[str] = "ingest"
    profile_id: UUID


class DeviceAttributesChanged(Event, frozen=True, kw_only=True):
    """Attributes of a device were set or removed. `scope` is server, shared or client."""

    type: ClassVar[str] = "device.attributes_changed.v1"
    source: ClassVar[str] = "ingest"
    device_id: UUID
    scope: str
    names: Sequence[str]


class DeviceGatewayChanged(Event, frozen=True, kw_only=True):
    """A device may speak for others than before, or no longer for any."""

    type: ClassVar[str] = "device.gateway_changed.v1"
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


class ConnectorChanged(Event, frozen=True, kw_only=True):
    """A connector was set up, changed, switched or removed: whoever runs it looks again."""

    type: ClassVar[str] = "connector.changed.v1"
    source: ClassVar[str] = "ingest"
    connector_id: UUID


class DevicePolicyChanged(Event, frozen=True, kw_only=True):
    """A tenant lets its devices do other things than before."""

    type: ClassVar[str] = "device.policy_changed.v1"
    source: ClassVar[str] = "ingest"
    plain_coap: bool
    """Whether CoAP without OSCORE or DTLS is let in."""


class DevicesTakenOver(Event, frozen=True, kw_only=True):
    """Devices connected at an endpoint that another one held connections of: those are over.

    `connected` is when each began the connection that stands.
    """

    type: ClassVar[str] = "devices.taken_over.v1"
    source: ClassVar[str] = "ingest"
    endpoint_id: UUID
    connected: dict[UUID, datetime]


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


class CommandQueued(Event, frozen=True, kw_only=True):
    """A command waits for a device: whoever holds a way to the device sends it."""

    type: ClassVar[str] = "command.queued.v1"
    source: ClassVar[str] = "ingest"
    command_id: UUID
    device_id: UUID


class CommandCompleted(Event, frozen=True, kw_only=True):
    """Nothing more becomes of a command: `status` is succeeded, failed or expired.

    `error` says why it failed: `timeout`, `cancelled`, `device_removed`, `too_many_commands`, or in
    the device's own words. `requested_by` is a user's id, or `rule:` and the rule's.
    """

    type: ClassVar[str] = "command.completed.v1"
    source: ClassVar[str] = "ingest"
    command_id: UUID
    device_id: UUID
    name: str
    status: str
    error: str | None = None
    requested_by: str = ""
