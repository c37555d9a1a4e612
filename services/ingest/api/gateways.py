"""Gateways over HTTP: which devices may speak for others, and for which."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi import Body as FromBody
from pydantic import Field

from libs.common.errors import Invalid, NotFound
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import CanReadDevices, CanWriteDevices, InTransaction
from services.ingest.domain.gateway import MOST_BEHIND, Gateway
from services.ingest.usecases import gateways as usecases

router = APIRouter(prefix="/api/v1/devices", tags=["devices"])

Behind = dict[str, UUID]
BehindPatch = Annotated[
    dict[str, UUID | None],
    FromBody(description="A JSON merge patch (RFC 7396): null takes a device away."),
]


class GatewayIn(Body):
    """What a device may do for others."""

    registers: Annotated[str, Field(min_length=1, max_length=64, examples=["sensor"])] | None = None
    """The type of the devices that it registers by naming them. Absent: it registers none."""
    most: Annotated[int, Field(ge=0, le=MOST_BEHIND)] = 100
    """How many devices may be behind it before it registers no more."""


class GatewayOut(Out):
    """What a device may do for others."""

    registers: Annotated[str | None, Field(examples=["sensor"])]
    most: int


@router.put("/{device_id}/gateway", responses=problems(NotFound, Invalid))
async def appoint_gateway(
    device_id: UUID, body: GatewayIn, who: CanWriteDevices, store: InTransaction, now: Now
) -> GatewayOut:
    """Let a device speak for those behind it."""
    gateway = Gateway(body.registers, body.most)
    await usecases.appoint(store, device_id, gateway, at=now)
    return GatewayOut.model_validate(gateway)


@router.get("/{device_id}/gateway", responses=problems(NotFound))
async def get_gateway(device_id: UUID, who: CanReadDevices, store: InTransaction) -> GatewayOut:
    """Return what a device may do for others; 404 if it speaks for itself alone."""
    return GatewayOut.model_validate(await store.gateways.get(device_id))


@router.delete("/{device_id}/gateway", status_code=204, responses=problems(NotFound))
async def dismiss_gateway(
    device_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> Response:
    """Let a device speak for itself alone again; those behind it stay registered."""
    await usecases.dismiss(store, device_id, at=now)
    return Response(status_code=204)


@router.get("/{device_id}/gateway/devices", responses=problems(NotFound))
async def get_devices_behind(device_id: UUID, who: CanReadDevices, store: InTransaction) -> Behind:
    """Return the devices behind a gateway (1,000 at most), by what it calls them."""
    await store.gateways.get(device_id)
    return await store.gateways.behind(device_id)


@router.patch("/{device_id}/gateway/devices", responses=problems(NotFound, Invalid))
async def change_devices_behind(
    device_id: UUID, body: BehindPatch, who: CanWriteDevices, store: InTransaction, now: Now
) -> Behind:
    """Put devices behind a gateway, by what it calls them, or take them away.

    A device is behind one gateway at a time: the one it was put behind last.
    """
    return await usecases.change_behind(store, device_id, body, at=now)
