"""Groups of devices over HTTP."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import Field, field_validator

from libs.common.errors import Conflict, Forbidden, Malformed, NotFound, PreconditionFailed
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
from services.ingest.usecases import groups as usecases

router = APIRouter(prefix="/api/v1/device-groups", tags=["devices"], route_class=IdempotentRoute)

GroupName = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[^/\x00-\x1f]+$", examples=["Hall 3"])
]
GroupKind = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$", examples=["site"])
]


class GroupIn(Body):
    """A group to make."""

    name: GroupName
    kind: GroupKind = "group"
    """Site, area, line, or whatever you call it."""
    parent_id: UUID | None = None


class GroupChange(Body):
    """What is to change of a group; what is left out stays. A parent that is null makes it a root."""

    name: GroupName | None = None
    kind: GroupKind | None = None
    parent_id: UUID | None = None

    @field_validator("name", "kind")
    @classmethod
    def _stays(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a group always has one")
        return value


class GroupOut(Out):
    """A group."""

    id: UUID
    parent_id: UUID | None
    name: Annotated[str, Field(examples=["Hall 3"])]
    kind: Annotated[str, Field(examples=["area"])]
    path: list[UUID]
    """The ids from the root down to the group itself."""
    created_at: datetime
    updated_at: datetime
    version: int


class _Position(msgspec.Struct):
    name: str
    id: UUID


@router.post("", status_code=201, responses=problems(NotFound, Conflict, Forbidden))
async def create_group(
    body: GroupIn, who: CanWriteDevices, store: InTransaction, now: Now
) -> GroupOut:
    """Make a group, as a root or below another one."""
    group = await usecases.create(
        store, uuid4(), name=body.name, kind=body.kind, parent_id=body.parent_id, at=now
    )
    return GroupOut.model_validate(group)


@router.get("", responses=problems(Malformed))
async def list_groups(
    who: CanReadDevices,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    parent_id: Annotated[UUID | None, Query(description="Only those right below this.")] = None,
) -> Page[GroupOut]:
    """List the groups, by name."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.name, position.id) if position else None
    groups = await store.groups.page(limit + 1, after, parent_id)
    more = len(groups) > limit
    groups = groups[:limit]
    return Page(
        items=[GroupOut.model_validate(group) for group in groups],
        next_cursor=encode_cursor(_Position(groups[-1].name, groups[-1].id)) if more else None,
    )


@router.get("/{group_id}", responses=problems(NotFound))
async def get_group(group_id: UUID, who: CanReadDevices, store: InTransaction) -> GroupOut:
    """Return one group. Its devices: `GET /api/v1/devices?group_id=`."""
    return GroupOut.model_validate(await store.groups.get(group_id))


@router.patch("/{group_id}", responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed))
async def change_group(
    group_id: UUID,
    body: GroupChange,
    who: CanWriteDevices,
    store: InTransaction,
    now: Now,
    if_match: IfMatch = None,
) -> GroupOut:
    """Rename a group, or move it with all that is below it."""
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    group = await usecases.update(store, group_id, changes, version=version_of(if_match), at=now)
    return GroupOut.model_validate(group)


@router.delete("/{group_id}", status_code=204, responses=problems(NotFound, Conflict, Forbidden))
async def remove_group(group_id: UUID, who: CanWriteDevices, store: InTransaction) -> Response:
    """Remove a group that nothing is in."""
    await usecases.remove(store, group_id)
    return Response(status_code=204)
