"""Devices over HTTP."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field, field_validator

from libs.common.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    PreconditionFailed,
    TooLarge,
    UnsupportedMedia,
)
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.ingest.api.deps import (
    CanReadDevices,
    CanWriteDevices,
    IfMatch,
    InTransaction,
    version_of,
)
from services.ingest.domain.device import MOST_TAGS, Status
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.search import Place, SortedBy, Wanted
from services.ingest.domain.token import new_token
from services.ingest.usecases import bulk
from services.ingest.usecases import devices as usecases

router = APIRouter(prefix="/api/v1/devices", tags=["devices"], route_class=IdempotentRoute)

_LINE = r"^[^\x00-\x1f]+$"
_TEXT = r"^[^\x00]*$"
MAX_SHEET_BYTES = 8 * 1024 * 1024

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=_LINE, examples=["press-7"])]
Type = Annotated[str, Field(min_length=1, max_length=64, pattern=_LINE, examples=["pump"])]
Serial = Annotated[str, Field(min_length=1, max_length=128, pattern=_LINE, examples=["HP-2041-7"])]
Description = Annotated[
    str, Field(max_length=1000, pattern=_TEXT, examples=["Hydraulic press in hall 3"])
]
Tag = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f;]+$", examples=["hall-3"])
]
Tags = Annotated[list[Tag], Field(max_length=MOST_TAGS)]


class DeviceIn(Body):
    """A device to register."""

    name: Name
    type: Type
    description: Description = ""
    serial: Serial | None = None
    profile_id: UUID | None = None
    group_id: UUID | None = None
    tags: Tags = Field(default_factory=list)


class DeviceChange(Body):
    """What is to change of a device; what is left out stays. Null takes away."""

    name: Name | None = None
    type: Type | None = None
    description: Description | None = None
    serial: Serial | None = None
    profile_id: UUID | None = None
    group_id: UUID | None = None
    tags: Tags | None = None

    @field_validator("name", "type", "description", "tags")
    @classmethod
    def _stays(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a device always has one")
        return value

    def changes(self) -> dict[str, Any]:
        """Return what was given, by the device's fields."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if "tags" in given:
            given["tags"] = unique(given["tags"])
        return given


class DeviceOut(Out):
    """A device."""

    id: UUID
    name: Annotated[str, Field(examples=["press-7"])]
    type: Annotated[str, Field(examples=["press"])]
    description: Annotated[str, Field(examples=["Hydraulic press in hall 3"])]
    serial: Annotated[str | None, Field(examples=["HP-2041-7"])]
    profile_id: UUID | None
    group_id: UUID | None
    tags: Annotated[list[str], Field(examples=[["hall-3"]])]
    is_claimed: bool
    """False for one made ahead, until whoever mounts it claims it."""
    status: Status
    status_reason: Annotated[str, Field(examples=[""])]
    status_at: datetime | None
    last_seen_at: datetime | None
    """When it last said something; written every few seconds."""
    protocol: Protocol | None
    """By which protocol it last spoke."""
    payload_format: PayloadFormat | None
    """In which form it last wrote."""
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    version: int


class Credentials(Out):
    """What a device proves itself with. Shown this once: only a hash is kept."""

    username: Annotated[str, Field(examples=["5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"])]
    """MQTT: client id and username."""
    token: Annotated[str, Field(examples=["dvt_4cZ0yR7uK1mW9xQ3tB5nV8pL2sD6fG0h"])]
    """MQTT: password. HTTP: bearer token."""


class RegisteredDevice(DeviceOut):
    """A device just registered, with its credentials."""

    credentials: Credentials


def _sheet(example: str) -> dict[str, Any]:
    return {"text/csv": {"schema": {"type": "string"}, "example": example}}


def unique(tags: list[str]) -> tuple[str, ...]:
    """Return tags, each once."""
    return tuple(dict.fromkeys(tags))


@router.post("", status_code=201, responses=problems(Conflict, NotFound, Forbidden))
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
        serial=body.serial,
        profile_id=body.profile_id,
        group_id=body.group_id,
        tags=unique(body.tags),
    )
    return RegisteredDevice(
        **DeviceOut.model_validate(device).model_dump(),
        credentials=Credentials(username=str(device_id), token=token),
    )


_Tags = Annotated[
    list[Annotated[str, Field(max_length=64, pattern=_LINE)]], Query(max_length=MOST_TAGS)
]


def _wanted(
    q: Annotated[
        str | None,
        Query(max_length=128, pattern=_LINE, description="A part of name or serial number."),
    ] = None,
    type: Annotated[str | None, Query(max_length=64, pattern=_LINE)] = None,  # noqa: A002 - the field's name
    profile_id: Annotated[UUID | None, Query()] = None,
    group_id: Annotated[
        UUID | None, Query(description="In this group, or in one below it.")
    ] = None,
    tag: Annotated[_Tags, Query(description="It has all of these tags.")] = [],  # noqa: B006 - FastAPI copies it
    any_tag: Annotated[_Tags, Query(description="It has one of these tags.")] = [],  # noqa: B006 - as above
    attribute: Annotated[
        list[Annotated[str, Field(max_length=400, pattern=r"^[^\x00-\x1f:]+:[^\x00-\x1f]*$")]],
        Query(max_length=10, description="`name:value`, in any scope; all of them."),
    ] = [],  # noqa: B006 - as above
    status: Annotated[Status | None, Query()] = None,
    protocol: Annotated[Protocol | None, Query()] = None,
    deleted: Annotated[
        bool, Query(description="Those that were removed and can be restored.")
    ] = False,
    sort: Annotated[
        str,
        Query(
            pattern=r"^-?(created_at|name|last_seen_at)$", description="With `-`: the last first."
        ),
    ] = "created_at",
) -> Wanted:
    return Wanted(
        q=q,
        type=type,
        profile_id=profile_id,
        group_id=group_id,
        tags=tuple(tag),
        any_tag=tuple(any_tag),
        attributes=tuple("=".join(a.split(":", 1)) for a in attribute),
        status=status,
        protocol=protocol,
        deleted=deleted,
        sort=SortedBy(sort.removeprefix("-")),
        descending=sort.startswith("-"),
    )


LookedFor = Annotated[Wanted, Depends(_wanted)]


@router.get("", responses=problems(Malformed))
async def list_devices(
    who: CanReadDevices, store: InTransaction, limit: Limit, cursor: Cursor, wanted: LookedFor
) -> Page[DeviceOut]:
    """List the devices that are looked for, oldest first if not said otherwise."""
    place = decode_cursor(cursor, Place) if cursor else None
    if place is not None and not wanted.has(place):
        reason = "The cursor is not one of this list; begin without one."
        raise Malformed(reason, errors=[FieldError("?cursor", reason)])
    devices = await store.devices.find(wanted.behind(place), limit + 1)
    more = len(devices) > limit
    devices = devices[:limit]
    return Page(
        items=[DeviceOut.model_validate(device) for device in devices],
        next_cursor=encode_cursor(wanted.place_of(devices[-1])) if more else None,
    )


@router.post(
    "/import",
    max_body_size=MAX_SHEET_BYTES,
    responses={
        200: {"content": _sheet("row,name,id,token,error\n2,press-7,5f0c…,dvt_…,\n")},
        **problems(Malformed, Invalid, Conflict, TooLarge, UnsupportedMedia),
    },
    response_class=Response,
    openapi_extra={
        "requestBody": {"required": True, "content": _sheet("name,type\npress-7,press\n")},
    },
)
async def import_devices(
    request: Request,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    dry_run: Annotated[bool, Query(description="Only say what would become of it.")] = False,
) -> Response:
    """Register the devices of a sheet: `name,type,serial,description,profile,group,tags,attributes`.

    Good rows are taken, whatever is wrong with others. The answer is a sheet again: each row with its
    device's id and token, which are shown this once, or with what is wrong with it. Sent again, it
    makes nothing twice: the names are taken.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "text/csv":
        raise UnsupportedMedia("a sheet is sent as text/csv")
    imported = await bulk.import_devices(
        store,
        await request.body(),
        dry_run=dry_run,
        most=request.app.state.settings.devices_per_tenant,
        at=now,
    )
    return Response(bulk.outcome_sheet(imported), media_type="text/csv")


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"content": _sheet("name,type,serial\npress-7,press,HP-2041-7\n")}},
)
async def export_devices(request: Request, who: CanReadDevices) -> StreamingResponse:
    """Return all devices as a sheet (CSV) that can be imported again."""

    async def parts() -> AsyncIterator[bytes]:
        async for part in bulk.export_devices(request.app.state.transactions, who.tenant_id):
            yield part.encode()

    return StreamingResponse(
        parts(),
        media_type="text/csv",
        headers={"content-disposition": 'attachment; filename="devices.csv"'},
    )


@router.get("/{device_id}", responses=problems(NotFound))
async def get_device(device_id: UUID, who: CanReadDevices, store: InTransaction) -> DeviceOut:
    """Return one device."""
    return DeviceOut.model_validate(await store.devices.get(device_id))


@router.patch("/{device_id}", responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed))
async def change_device(
    device_id: UUID,
    body: DeviceChange,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    if_match: IfMatch = None,
) -> DeviceOut:
    """Change a device: what it is called, what it is, where it is."""
    device = await usecases.update(
        store, device_id, body.changes(), version=version_of(if_match), at=now
    )
    return DeviceOut.model_validate(device)


@router.delete("/{device_id}", status_code=204, responses=problems(NotFound))
async def remove_device(
    device_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> Response:
    """Remove a device. Its credentials are void at once and its connections are cut; its points stay.

    It can be restored for 30 days, as long as nothing else is said by `INGEST_DELETED_KEPT`.
    """
    await usecases.remove(store, device_id, at=now)
    return Response(status_code=204)


@router.post("/{device_id}/restore", responses=problems(NotFound, Conflict))
async def restore_device(
    request: Request, device_id: UUID, who: CanWriteDevices, store: InTransaction, now: Now
) -> DeviceOut:
    """Bring a removed device back. Give it credentials anew: those it had stay void."""
    device = await usecases.restore(
        store, device_id, most=request.app.state.settings.devices_per_tenant, at=now
    )
    return DeviceOut.model_validate(device)
