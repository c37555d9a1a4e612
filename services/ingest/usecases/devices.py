"""What is done with devices."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from libs.common.db.acting import check_unlimited
from libs.common.db.transactions import Transactions
from libs.common.errors import Conflict, PreconditionFailed
from libs.common.events.ingest import (
    DeviceCreated,
    DeviceDeleted,
    DeviceStatusChanged,
    DeviceUpdated,
)
from libs.common.events.usage import UsageCounted
from libs.common.places import whole_tenant
from libs.common.quotas.terms import Resource
from services.ingest.domain.credential import Credential, CredentialKind
from services.ingest.domain.device import Device, Status
from services.ingest.domain.presence import is_overtaken
from services.ingest.domain.token import hash_token
from services.ingest.store.devices import Removed
from services.ingest.store.store import IngestStore

REMOVED = "the device was removed"
AT_ONCE = 1_000
"""Devices erased in one go, at most."""


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
    **more: Any,
) -> Device:
    """Register a device with its token; `more` are other fields of a device.

    Raises Conflict if the name or serial number is taken or there are `most`, NotFound if its
    profile or group is not there.
    """
    count = await check_room(store, 1, most)
    device = new_device(
        store.tenant_id, device_id, name=name, type=type, description=description, at=at, **more
    )
    path = await check_place(store, device)
    await store.devices.add(device)
    await give_token(store, device_id, token, at=at)
    say_created(store, device, path, at=at)
    say_count(store, count, at=at)
    return device


def new_device(tenant_id: UUID, device_id: UUID, *, at: datetime, **fields: Any) -> Device:
    """Return a device that nothing has been heard of."""
    return Device(
        id=device_id,
        tenant_id=tenant_id,
        status=Status.UNKNOWN,
        status_reason="",
        status_at=None,
        created_at=at,
        updated_at=at,
        version=1,
        **fields,
    )


async def check_room(store: IngestStore, more: int, most: int) -> int:
    """Return how many devices the tenant would have.

    Raises Conflict if these are more than `most`, QuotaExceeded if more than its plan allows,
    Unavailable if many come.
    """
    await store.devices.lock()
    async with whole_tenant(store.session):
        count = await store.devices.count() + more
    if more:
        await store.quotas.check(Resource.DEVICES, count)
    if count > most:
        raise Conflict(f"a tenant has {most} devices at most")
    return count


def say_count(store: IngestStore, count: int, *, at: datetime) -> None:
    """Say how many devices the tenant has. Lock them before."""
    store.emit(
        UsageCounted(
            tenant_id=store.tenant_id,
            at=at,
            day=at.astimezone(UTC).date(),
            resource=Resource.DEVICES.value,
            how="standing",
            amount=count,
        )
    )


async def check_place(store: IngestStore, device: Device) -> tuple[UUID, ...]:
    """Return the groups a device is in, from the root down, which stay until the transaction ends.

    Raises NotFound if its group or profile is not there, or the group not in the caller's reach;
    Forbidden if it is in no group, for a caller who is limited to some.
    """
    if device.profile_id is not None:
        await store.profiles.hold(device.profile_id)
    if device.group_id is None:
        check_unlimited("a device of yours is in one of the groups that you are limited to")
        return ()
    return (await store.groups.hold(device.group_id)).path


async def update(
    store: IngestStore,
    device_id: UUID,
    changes: Mapping[str, Any],
    *,
    version: int | None,
    at: datetime,
) -> Device:
    """Change what is given of a device.

    Raises NotFound, Conflict if its new name or serial number is taken, PreconditionFailed if
    `version` is given and is no longer the device's.
    """
    device = await store.devices.get(device_id, lock=True)
    if version is not None and version != device.version:
        raise PreconditionFailed(f"the device is at version {device.version}, not {version}")
    device = replace(device, **changes, updated_at=at, version=device.version + 1)
    path = await check_place(store, device)
    await store.devices.update(device)
    say_updated(store, device, path, at=at)
    return device


async def remove(store: IngestStore, device_id: UUID, *, at: datetime) -> None:
    """Remove a device: its credentials are void, its connections are cut, its points stay.

    Its name is free again; it can be restored for a while. Raises NotFound.
    """
    await store.devices.lock()
    device = await store.devices.get(device_id, lock=True)
    await store.credentials.remove_all(device_id)
    await store.claims.remove(device_id)
    await store.devices.let_go(device_id)
    await store.devices.update(
        replace(
            device,
            status=Status.OFFLINE,
            status_reason=REMOVED,
            status_at=at,
            deleted_at=at,
            version=device.version + 1,
        )
    )
    store.emit(DeviceDeleted(tenant_id=store.tenant_id, at=at, device_id=device_id))
    say_count(store, await store.devices.count(), at=at)


async def restore(store: IngestStore, device_id: UUID, *, most: int, at: datetime) -> Device:
    """Bring a removed device back. It has no credentials until it is given new ones.

    Raises NotFound, Conflict if it is there, its name or serial number is taken, or there are `most`.
    """
    device = await store.devices.get(device_id, lock=True, or_deleted=True)
    if device.deleted_at is None:
        raise Conflict("the device is not removed")
    count = await check_room(store, 1, most)
    device = replace(
        device,
        deleted_at=None,
        status=Status.UNKNOWN,
        status_reason="",
        status_at=None,
        updated_at=at,
        version=device.version + 1,
    )
    await store.devices.update(device)
    say_created(store, device, await check_place(store, device), at=at)
    say_count(store, count, at=at)
    return device


async def purge(removed: Removed, transactions: Transactions[IngestStore], kept: timedelta) -> None:
    """Erase the devices that were removed longer ago than `kept`, of all tenants."""
    while devices := await removed.longer_than(kept, AT_ONCE):
        of_tenant: dict[UUID, list[UUID]] = {}
        for tenant_id, device_id in devices:
            of_tenant.setdefault(tenant_id, []).append(device_id)
        for tenant_id, device_ids in of_tenant.items():
            async with transactions.begin(tenant_id) as store:
                await store.devices.erase(device_ids)
        if len(devices) < AT_ONCE:
            return


async def give_token(store: IngestStore, device_id: UUID, token: str, *, at: datetime) -> None:
    """Give a device a token besides those it has."""
    credential = Credential(uuid4(), device_id, CredentialKind.TOKEN, None, None, at, None)
    await store.credentials.add(credential, hash_token(token))


def say_created(
    store: IngestStore, device: Device, path: tuple[UUID, ...], *, at: datetime
) -> None:
    """Say that there is a device."""
    store.emit(
        DeviceCreated(
            tenant_id=store.tenant_id,
            at=at,
            device_id=device.id,
            name=device.name,
            device_type=device.type,
            group_ids=path,
            tags=device.tags,
            profile_id=device.profile_id,
        )
    )


def say_updated(
    store: IngestStore, device: Device, path: tuple[UUID, ...], *, at: datetime
) -> None:
    """Say that a device is another than before."""
    store.emit(
        DeviceUpdated(
            tenant_id=store.tenant_id,
            at=at,
            device_id=device.id,
            name=device.name,
            device_type=device.type,
            group_ids=path,
            tags=device.tags,
            profile_id=device.profile_id,
        )
    )


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
