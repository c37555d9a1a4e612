"""What is done with groups of devices. Of a tenant's tree one change is made at a time."""

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.errors import Conflict, PreconditionFailed
from libs.common.events.ingest import DeviceGroupMoved
from services.ingest.domain.group import MOST_GROUPS, Group, placed_below
from services.ingest.store.store import IngestStore


async def create(
    store: IngestStore,
    group_id: UUID,
    *,
    name: str,
    kind: str,
    parent_id: UUID | None,
    at: datetime,
) -> Group:
    """Make a group. Raises NotFound for its parent, Conflict if the name is taken or it is too deep."""
    await store.groups.lock()
    if await store.groups.count() >= MOST_GROUPS:
        raise Conflict(f"a tenant has {MOST_GROUPS} groups at most")
    parent = None if parent_id is None else await store.groups.get(parent_id)
    group = placed_below(Group(group_id, None, name, kind, (), at, at, 1), parent, height=1)
    await store.groups.add(group)
    return group


async def update(
    store: IngestStore,
    group_id: UUID,
    changes: dict[str, Any],
    *,
    version: int | None,
    at: datetime,
) -> Group:
    """Rename a group, or move it with all that is below it.

    Raises NotFound, Conflict if the name is taken or it cannot be there, PreconditionFailed if
    `version` is given and is no longer the group's.
    """
    await store.groups.lock()
    group = await store.groups.get(group_id)
    if version is not None and version != group.version:
        raise PreconditionFailed(f"the group is at version {group.version}, not {version}")
    was = group.path
    group = replace(group, **changes, updated_at=at, version=group.version + 1)
    if "parent_id" in changes:
        parent_id: UUID | None = changes["parent_id"]
        parent = None if parent_id is None else await store.groups.get(parent_id)
        group = placed_below(group, parent, await store.groups.height(group))
    await store.groups.update(group)
    if group.path != was:
        store.emit(
            DeviceGroupMoved(
                tenant_id=store.tenant_id, at=at, group_id=group_id, was=was, group_ids=group.path
            )
        )
    return group


async def remove(store: IngestStore, group_id: UUID) -> None:
    """Remove a group that is empty. Raises NotFound, Conflict."""
    await store.groups.lock()
    await store.groups.remove(group_id)
