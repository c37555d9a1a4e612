"""Groups of devices."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, text, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.ingest.domain.group import Group
from services.ingest.store.many import insert_many
from services.ingest.store.tables import DeviceRow, GroupRow
from services.ingest.store.turns import take_turn


class Groups:
    """The tree of groups of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def lock(self) -> None:
        """Let nobody else change the tree until the transaction ends. Raises Unavailable."""
        await take_turn(self._session, "ingest.device_groups", self._tenant_id)

    async def add(self, group: Group) -> None:
        """Keep a group. Raises Conflict if its parent has one of that name."""
        row = GroupRow(tenant_id=self._tenant_id, id=group.id, created_at=group.created_at)
        await self._save(row, group)

    async def count(self) -> int:
        """Return how many there are."""
        query = select(func.count()).where(GroupRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def get(self, group_id: UUID) -> Group:
        """Return a group. Raises NotFound."""
        return _to_group(await self._row(group_id))

    async def hold(self, group_id: UUID) -> Group:
        """Return a group, which stays where it is until the transaction ends. Raises NotFound."""
        return _to_group(await self._row(group_id, share=True))

    async def add_many(self, groups: Sequence[Group]) -> None:
        """Keep groups whose names are known to be free."""
        # One statement, behind which the references to parents are checked.
        await insert_many(
            self._session,
            "ingest.device_groups",
            [
                {
                    "tenant_id": self._tenant_id,
                    "id": group.id,
                    "created_at": group.created_at,
                    **_columns(group),
                }
                for group in groups
            ],
        )

    async def page(
        self, limit: int, after: tuple[str, UUID] | None, parent_id: UUID | None
    ) -> list[Group]:
        """Return up to `limit` groups, by name, after the given (name, id); of one parent if named."""
        query = (
            select(GroupRow)
            .where(GroupRow.tenant_id == self._tenant_id)
            .order_by(GroupRow.name, GroupRow.id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(GroupRow.name, GroupRow.id) > after)
        if parent_id is not None:
            query = query.where(GroupRow.parent_id == parent_id)
        return [_to_group(row) for row in await self._session.scalars(query)]

    async def all(self) -> list[Group]:
        """Return the whole tree, a parent before its children."""
        query = (
            select(GroupRow)
            .where(GroupRow.tenant_id == self._tenant_id)
            .order_by(func.cardinality(GroupRow.path))
        )
        return [_to_group(row) for row in await self._session.scalars(query)]

    async def height(self, group: Group) -> int:
        """Return how many levels the tree has that begins with the group."""
        deepest = await self._session.scalar(
            select(func.max(func.cardinality(GroupRow.path))).where(
                GroupRow.tenant_id == self._tenant_id,
                GroupRow.path.contains([group.id]),
            )
        )
        return (deepest or len(group.path)) - len(group.path) + 1

    async def update(self, group: Group) -> None:
        """Save a group; what is below it goes where it goes. Raises Conflict if its name is taken."""
        row = await self._row(group.id)
        levels = len(row.path)
        if tuple(row.path) != group.path:
            await self._session.execute(
                text(
                    "UPDATE ingest.device_groups"
                    " SET path = cast(:path AS uuid[]) || path[cast(:levels AS int) + 1:]"
                    " WHERE tenant_id = :tenant AND :id = ANY(path) AND id <> :id"
                ),
                {
                    "path": list(group.path),
                    "levels": levels,
                    "tenant": self._tenant_id,
                    "id": group.id,
                },
            )
        await self._save(row, group)

    async def remove(self, group_id: UUID) -> None:
        """Remove a group. Raises NotFound, and Conflict if groups or devices are in it."""
        row = await self._row(group_id, lock=True)
        groups = await self._session.scalar(
            select(func.count()).where(
                GroupRow.tenant_id == self._tenant_id, GroupRow.parent_id == group_id
            )
        )
        devices = await self._session.scalar(
            select(func.count()).where(
                DeviceRow.tenant_id == self._tenant_id,
                DeviceRow.group_id == group_id,
                DeviceRow.deleted_at.is_(None),
            )
        )
        if groups or devices:
            raise Conflict(f"{groups} groups and {devices} devices are in this group")
        await self._session.delete(row)

    async def _row(self, group_id: UUID, *, lock: bool = False, share: bool = False) -> GroupRow:
        query = select(GroupRow).where(
            GroupRow.tenant_id == self._tenant_id, GroupRow.id == group_id
        )
        if lock or share:
            query = query.with_for_update(read=share).execution_options(populate_existing=True)
        row = await self._session.scalar(query)
        if row is None:
            raise NotFound(f"no group {group_id}")
        return row

    async def _save(self, row: GroupRow, group: Group) -> None:
        for name, value in _columns(group).items():
            setattr(row, name, value)
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "device_groups_tenant_id_parent_id_name_key" in str(error.orig):
                raise Conflict(f"there is a group named {group.name!r} there already") from error
            raise


def _columns(group: Group) -> dict[str, object]:
    """Return what may change of a group, as it is kept."""
    return {
        "parent_id": group.parent_id,
        "name": group.name,
        "kind": group.kind,
        "path": list(group.path),
        "updated_at": group.updated_at,
        "version": group.version,
    }


def _to_group(row: GroupRow) -> Group:
    return Group(
        id=row.id,
        parent_id=row.parent_id,
        name=row.name,
        kind=row.kind,
        path=tuple(row.path),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
    )
