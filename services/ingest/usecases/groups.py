"""What is done with groups of devices. Of a tenant's tree one change is made at a time."""

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.db.acting import check_unlimited, is_limited
from libs.common.errors import Conflict, Forbidden, NotFound, PreconditionFailed
from libs.common.events.ingest import DeviceGroupMoved
from libs.common.places import whole_tenant
from services.ingest.domain.group import MOST_GROUPS, Group, placed_below
from services.ingest.store.store import IngestStore

NO_ROOTS = "groups of yours are below those that you are limited to"


async def create(
    store: IngestStore,
    group_id: UUID,
    *,
    name: str,
    kind: str,
    parent_id: UUID | None,
    at: datetime,
) -> Group:
    """Make a group.

    Raises NotFound for its parent, Conflict if the name is taken or it is too deep, Forbidden for a
    root if the caller is limited to some groups.
    """
    await store.groups.lock()
    if parent_id is None:
        check_unlimited(NO_ROOTS)
    async with whole_tenant(store.session):
        there = await store.groups.count()
    if there >= MOST_GROUPS:
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
    `version` is given and is no longer the group's, Forbidden if the caller is limited to groups and
    would move one of these themselves, or make it a root.
    """
    await store.groups.lock()
    group = await store.groups.get(group_id)
    if version is not None and version != group.version:
        raise PreconditionFailed(f"the group is at version {group.version}, not {version}")
    was = group.path
    if "parent_id" in changes:
        await _check_may_move(store, group)
    group = replace(group, **changes, updated_at=at, version=group.version + 1)
    if "parent_id" in changes:
        parent_id: UUID | None = changes["parent_id"]
        if parent_id is None:
            check_unlimited(NO_ROOTS)
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
    """Remove a group that is empty. Raises NotFound, Conflict, Forbidden as `update` does."""
    await store.groups.lock()
    await _check_may_move(store, await store.groups.get(group_id))
    await store.groups.remove(group_id)


async def _check_may_move(store: IngestStore, group: Group) -> None:
    """Raise Forbidden if the caller is limited to groups and what this one is below is beyond them."""
    if not is_limited():
        return
    try:
        if group.parent_id is not None:
            await store.groups.get(group.parent_id)
            return
    except NotFound:
        pass
    raise Forbidden("this is one of the groups that you are limited to: it stays where it is")
