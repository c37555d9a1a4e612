"""What is done with devices."""

from dataclasses import replace
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict, PreconditionFailed
from libs.common.events.ingest import (
    DeviceCreated,
    DeviceCredentialRotated,
    DeviceDeleted,
    DeviceStatusChanged,
    DeviceUpdated,
)
from services.ingest.domain.device import Device, Status
from services.ingest.domain.presence import is_overtaken
from services.ingest.domain.token import hash_token
from services.ingest.store.store import IngestStore


async def register(
    store: IngestStore,
    device_id: UUID,
    token: str,
    *,
    name: str,
    type: str,  # noqa: A002 - the field's own word for what kind of device it is
    description: str,
    most: int,
    at: datetime,
) -> Device:
    """Register a device with its token. Raises Conflict if the name is taken, or there are `most`."""
    if await store.devices.count() >= most:
        raise Conflict(f"a tenant has {most} devices at most")
    device = Device(
        id=device_id,
        tenant_id=store.tenant_id,
        name=name,
        type=type,
        description=description,
        status=Status.UNKNOWN,
        status_reason="",
        status_at=None,
        created_at=at,
        updated_at=at,
        version=1,
    )
    await store.devices.add(device)
    await store.devices.set_token(device_id, hash_token(token), at)
    store.emit(
        DeviceCreated(
            tenant_id=store.tenant_id, at=at, device_id=device_id, name=name, device_type=type
        )
    )
    return device


async def update(
    store: IngestStore,
    device_id: UUID,
    *,
    name: str | None,
    type: str | None,  # noqa: A002 - as above
    description: str | None,
    version: int | None,
    at: datetime,
) -> Device:
    """Change what is given of a device.

    Raises NotFound, Conflict if the new name is taken, PreconditionFailed if `version` is given and
    is no longer the device's.
    """
    device = await store.devices.get(device_id, lock=True)
    if version is not None and version != device.version:
        raise PreconditionFailed(f"the device is at version {device.version}, not {version}")
    device = replace(
        device,
        name=device.name if name is None else name,
        type=device.type if type is None else type,
        description=device.description if description is None else description,
        updated_at=at,
        version=device.version + 1,
    )
    await store.devices.update(device)
    store.emit(
        DeviceUpdated(
            tenant_id=store.tenant_id,
            at=at,
            device_id=device_id,
            name=device.name,
            device_type=device.type,
        )
    )
    return device


async def remove(store: IngestStore, device_id: UUID, *, at: datetime) -> None:
    """Remove a device: its token is void, its connections are cut, its points stay. Raises NotFound."""
    await store.devices.remove(device_id)
    store.emit(DeviceDeleted(tenant_id=store.tenant_id, at=at, device_id=device_id))


async def rotate_token(store: IngestStore, device_id: UUID, token: str, *, at: datetime) -> Device:
    """Give a device a new token; the old one is void, what it connected is cut. Raises NotFound."""
    device = await store.devices.get(device_id, lock=True)
    await store.devices.set_token(device_id, hash_token(token), at)
    store.emit(DeviceCredentialRotated(tenant_id=store.tenant_id, at=at, device_id=device_id))
    return device


async def note_status(
    store: IngestStore, device_id: UUID, status: Status, reason: str, *, at: datetime
) -> None:
    """Note that a device came or went. Says so only if that is new. Raises NotFound.

    Words come by several ways (a connection's, the device's own, a will), so one may be overtaken
    by a newer one; then it is not noted.
    """
    device = await store.devices.get(device_id, lock=True)
    if is_overtaken(at, device.status_at, at):
        return
    if device.status is status and device.status_reason == reason:
        return
    await store.devices.update(replace(device, status=status, status_reason=reason, status_at=at))
    store.emit(
        DeviceStatusChanged(
            tenant_id=store.tenant_id,
            at=at,
            device_id=device_id,
            status=status.value,
            reason=reason,
        )
    )
