"""Devices over HTTP."""

from datetime import datetime
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field

from libs.common.errors import Conflict, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import CanReadDevices, CanWriteDevices, InTransaction
from services.ingest.domain.device import Status
from services.ingest.domain.token import new_token
from services.ingest.usecases import devices as usecases

router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=IdempotentRoute)

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]


class DeviceIn(Body):
    """A device to register."""

    name: Name
    type: Annotated[str, Field(min_length=1, max_length=64, examples=["pump"])]
    description: Annotated[str, Field(max_length=1000)] = ""


class DeviceChange(Body):
    """What is to change of a device; what is left out stays."""

    name: Name | None = None
    type: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    description: Annotated[str, Field(max_length=1000)] | None = None


class DeviceOut(Out):
    """A device."""

    id: UUID
    name: str
    type: str
    description: str
    status: Status
    status_reason: str
    status_at: datetime | None
    created_at: datetime
    updated_at: datetime
    version: int


class Credentials(Out):
    """What a device proves itself with. Shown this once: only a hash is kept."""

    username: str
    """MQTT: client id and username."""
    token: str
    """MQTT: password. HTTP: bearer token."""


class RegisteredDevice(DeviceOut):
    """A device just registered, with its credentials."""

    credentials: Credentials


class _Position(msgspec.Struct):
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict))
async def register_device(
    request: Request, body: DeviceIn, who: CanWriteDevices, store: InTransaction, now: Now
) -> RegisteredDevice:
    """Register a device. The answer holds its credentials, which are shown this once."""
    device_id, token = uuid4(), new_token()
    device = await usecases.register(
        store,
        device_id,
        token,
        name=body.name,
        type=body.type,
        description=body.description,
        most=request.app.state.settings.devices_per_tenant,
        at=now,
    )
    return RegisteredDevice(
        **DeviceOut.model_validate(device).model_dump(),
        credentials=Credentials(username=str(device_id), token=token),
    )


@router.get("", responses=problems(Malformed))
async def list_devices(
    who: CanReadDevices,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    type: Annotated[str | None, Query(max_length=64)] = None,  # noqa: A002 - the field's name
) -> Page[DeviceOut]:
    """List the devices, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    devices = await store.devices.page(limit + 1, after, type)
    more = len(devices) > limit
    devices = devices[:limit]
    return Page(
        items=[DeviceOut.model_validate(device) for device in devices],
        next_cursor=encode_cursor(_Position(devices[-1].created_at, devices[-1].id))
        if more
        else None,
    )


@router.get("/{device_id}", responses=problems(NotFound))
async def get_device(device_id: UUID, who: CanReadDevices, store: InTransaction) -> DeviceOut:
    """Return one device."""
    return DeviceOut.model_validate(await store.devices.get(device_id))


@router.patch("/{device_id}", responses=problems(NotFound, Conflict, PreconditionFailed))
async def change_device(
    device_id: UUID,
    body: DeviceChange,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    if_match: Annotated[
        str | None, Header(pattern=r'^"?\d{1,9}"?$', description="The version that you saw.")
    ] = None,
) -> DeviceOut:
    """Change a device's name, type or description."""
    device = await usecases.update(
        store,
        device_id,
        name=body.name,
        type=body.type,
        description=body.description,
        version=int(if_match.strip('"')) if if_match else None,
        at=now,
    )
    return DeviceOut.model_validate(device)


@router.delete("/{device_id}", status_code=204, responses=problems(NotFound))
async def remove_device(
    device_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> Response:
    """Remove a device. Its token is void at once and its connections are cut; its points stay."""
    await usecases.remove(store, device_id, at=now)
    return Response(status_code=204)


@router.post("/{device_id}/credentials", status_code=201, responses=problems(NotFound))
async def rotate_device_credentials(
    device_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> Credentials:
    """Give a device a new token, shown this once. The old one is void at once."""
    token = new_token()
    await usecases.rotate_token(store, device_id, token, at=now)
    return Credentials(username=str(device_id), token=token)
