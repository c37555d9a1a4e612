"""Provisioning keys over HTTP, and the devices that register by them."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import Field, field_validator

from libs.common.errors import (
    Conflict,
    Forbidden,
    Malformed,
    NotFound,
    PreconditionFailed,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from libs.common.http.access import public
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute, repeatable
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Moment, Out
from services.ingest.api.deps import (
    CanReadDevices,
    CanWriteDevices,
    IfMatch,
    InTransaction,
    version_of,
)
from services.ingest.api.devices import Credentials, Name, Serial, Tags, Type, unique
from services.ingest.domain.provisioning import new_provisioning_key
from services.ingest.domain.token import new_token
from services.ingest.usecases import provisioning as usecases

router = APIRouter(
    prefix="/api/v1/provisioning-keys", tags=["devices"], route_class=IdempotentRoute
)
of_devices = APIRouter(prefix="/api/v1/devices", tags=["devices"])

MaxDevices = Annotated[int, Field(ge=1, le=10_000_000)]


class KeyIn(Body):
    """A provisioning key to make, and what the devices are that register by it."""

    name: Name
    device_type: Type
    profile_id: UUID | None = None
    group_id: UUID | None = None
    tags: Tags = Field(default_factory=list)
    is_enabled: bool = True
    expires_at: Moment | None = None
    max_devices: MaxDevices | None = None


class KeyChange(Body):
    """What is to change of a key; what is left out stays. Null takes away."""

    name: Name | None = None
    device_type: Type | None = None
    profile_id: UUID | None = None
    group_id: UUID | None = None
    tags: Tags | None = None
    is_enabled: bool | None = None
    expires_at: Moment | None = None
    max_devices: MaxDevices | None = None

    @field_validator("name", "device_type", "tags", "is_enabled")
    @classmethod
    def _stays(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a key always has one")
        return value


class KeyOut(Out):
    """A provisioning key, without the key itself."""

    id: UUID
    name: Annotated[str, Field(examples=["Presses of hall 3"])]
    device_type: Annotated[str, Field(examples=["press"])]
    profile_id: UUID | None
    group_id: UUID | None
    tags: Annotated[list[str], Field(examples=[["hall-3"]])]
    is_enabled: bool
    expires_at: datetime | None
    max_devices: Annotated[int | None, Field(examples=[50])]
    devices: int
    """How many registered by it."""
    created_at: datetime
    updated_at: datetime
    version: int


class MadeKey(KeyOut):
    """A provisioning key just made. The key is shown this once: only a hash is kept."""

    key: Annotated[str, Field(examples=["prv_3jR8tVw0Qm5yZ1xK7uN9pL2sD4fG6hJ8"])]


class Provisioned(Out):
    """A device that registered itself, with its credentials, which are shown this once."""

    id: UUID
    name: Annotated[str, Field(examples=["press-7"])]
    credentials: Credentials


class ProvisionIn(Body):
    """A device that registers itself."""

    key: Annotated[
        str, Field(min_length=1, max_length=128, examples=["prv_3jR8tVw0Qm5yZ1xK7uN9pL2sD4fG6hJ8"])
    ]
    serial: Serial
    name: Name | None = None
    """Absent: its serial number."""


class _Position(msgspec.Struct):
    name: str


@router.post("", status_code=201, responses=problems(Conflict, NotFound, Forbidden))
async def create_provisioning_key(
    body: KeyIn, who: CanWriteDevices, store: InTransaction, now: Now
) -> MadeKey:
    """Make a provisioning key, which is shown this once."""
    key = new_provisioning_key()
    fields = {**body.model_dump(), "tags": unique(body.tags)}
    made = await usecases.create(store, uuid4(), key, at=now, **fields)
    return MadeKey(**KeyOut.model_validate(made).model_dump(), key=key)


@router.get("", responses=problems(Malformed))
async def list_provisioning_keys(
    who: CanReadDevices, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[KeyOut]:
    """List the provisioning keys, by name."""
    after = decode_cursor(cursor, _Position).name if cursor else None
    keys = await store.provisioning_keys.page(limit + 1, after)
    more = len(keys) > limit
    keys = keys[:limit]
    return Page(
        items=[KeyOut.model_validate(key) for key in keys],
        next_cursor=encode_cursor(_Position(keys[-1].name)) if more else None,
    )


@router.get("/{key_id}", responses=problems(NotFound))
async def get_provisioning_key(key_id: UUID, who: CanReadDevices, store: InTransaction) -> KeyOut:
    """Return one provisioning key."""
    return KeyOut.model_validate(await store.provisioning_keys.get(key_id))


@router.patch("/{key_id}", responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed))
async def change_provisioning_key(
    key_id: UUID,
    body: KeyChange,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    if_match: IfMatch = None,
) -> KeyOut:
    """Change a provisioning key, or switch it off. Devices that registered by it stay."""
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    if "tags" in changes:
        changes["tags"] = unique(changes["tags"])
    key = await usecases.update(store, key_id, changes, version=version_of(if_match), at=now)
    return KeyOut.model_validate(key)


@router.delete("/{key_id}", status_code=204, responses=problems(NotFound))
async def remove_provisioning_key(
    key_id: UUID, who: CanWriteDevices, store: InTransaction
) -> Response:
    """Remove a provisioning key: no device registers by it any more. Those that did stay."""
    await store.provisioning_keys.remove(key_id)
    return Response(status_code=204)


@of_devices.post(
    "/provision",
    status_code=201,
    responses=problems(Unauthenticated, Forbidden, Conflict, TooManyRequests, Unavailable),
)
@public("the provisioning key is the credential")
@repeatable("a device that was never heard of since may register again, and is the same one")
async def provision_device(request: Request, body: ProvisionIn) -> Provisioned:
    """Let a device register itself by its maker's key. It needs no login; the key is the credential."""
    token = new_token()
    origin = request.client.host if request.client is not None else ""
    device = await request.app.state.provisioning.provision(
        body.key, token, origin, serial=body.serial, name=body.name
    )
    return Provisioned(
        id=device.id,
        name=device.name,
        credentials=Credentials(username=str(device.id), token=token),
    )
