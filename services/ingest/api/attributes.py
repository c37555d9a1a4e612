"""Devices' attributes over HTTP: for users, and for the device itself."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Request

from libs.common.errors import Conflict, Invalid, Malformed, NotFound, Unauthenticated
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from services.ingest.api.deps import CanReadDevices, CanWriteDevices, InTransaction, TheDevice
from services.ingest.domain.attribute import Scope
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.protocol import Protocol
from services.ingest.usecases import attributes as usecases

router = APIRouter(prefix="/api/v1/devices", tags=["devices"])

Attributes = dict[str, Any]
Patch = Annotated[Attributes, Body(description="A JSON merge patch (RFC 7396): null removes.")]


class OwnAttributes(Out):
    """What a device may see of its attributes."""

    shared: Attributes
    """What users set for it."""
    client: Attributes
    """What it said of itself."""


@router.get("/me/attributes", responses=problems(Unauthenticated))
async def get_own_attributes(request: Request, device: TheDevice) -> OwnAttributes:
    """Return the attributes that a device may see, to the device itself."""
    _met(request, device)
    async with request.app.state.transactions.begin(device.tenant_id) as store:
        return OwnAttributes(
            shared=await store.attributes.get(device.device_id, Scope.SHARED),
            client=await store.attributes.get(device.device_id, Scope.CLIENT),
        )


@router.patch(
    "/me/attributes",
    status_code=204,
    responses=problems(Unauthenticated, Malformed, Invalid, Conflict),
)
async def change_own_attributes(request: Request, device: TheDevice, body: Patch, now: Now) -> None:
    """Take what a device says of itself, as a JSON merge patch."""
    _met(request, device)
    await request.app.state.reception.reports.take(
        device, Channel.ATTRIBUTES, await request.body(), now
    )


@router.get("/{device_id}/attributes/{scope}", responses=problems(NotFound))
async def get_attributes(
    device_id: UUID, scope: Scope, who: CanReadDevices, store: InTransaction
) -> Attributes:
    """Return a device's attributes of a scope."""
    await store.devices.get(device_id)
    return await store.attributes.get(device_id, scope)


@router.patch("/{device_id}/attributes/{scope}", responses=problems(NotFound, Invalid, Conflict))
async def change_attributes(
    device_id: UUID, scope: Scope, body: Patch, who: CanWriteDevices, store: InTransaction, now: Now
) -> Attributes:
    """Set and remove attributes of a device. Those of scope `client` are the device's own."""
    if scope is Scope.CLIENT:
        raise Conflict("attributes of scope client are the device's own")
    return await usecases.change(store, device_id, scope, body, at=now)


def _met(request: Request, device: Source) -> None:
    request.app.state.reception.met(device, Protocol.HTTP)
