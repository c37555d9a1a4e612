"""The roles a tenant made for itself."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import Conflict, NotFound
from services.tenancy.domain.role import Role
from services.tenancy.store.tables import RoleRow


class Roles:
    """One tenant's own roles."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def all(self) -> list[Role]:
        """Return the roles by name; there are few, so nobody pages through them."""
        query = select(RoleRow).where(RoleRow.tenant_id == self._tenant_id).order_by(RoleRow.name)
        return [_to_role(row) for row in await self._session.scalars(query)]

    async def named(self, names: Iterable[str]) -> list[Role]:
        """Return those of the roles that exist."""
        query = select(RoleRow).where(
            RoleRow.tenant_id == self._tenant_id, RoleRow.name.in_(list(names))
        )
        return [_to_role(row) for row in await self._session.scalars(query)]

    async def get(self, name: str) -> Role:
        """Return a role. Raises NotFound."""
        return _to_role(await self._row(name))

    async def add(self, role: Role, at: datetime) -> None:
        """Add a role. Raises Conflict if there is one of that name."""
        row = RoleRow(
            tenant_id=self._tenant_id,
            name=role.name,
            description=role.description,
            permissions=list(role.permissions),
            created_at=at,
            updated_at=at,
        )
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "roles_pkey" in str(error.orig):
                raise Conflict(f"there is a role {role.name!r} already") from error
            raise

    async def update(self, role: Role, at: datetime) -> None:
        """Save what the role permits from now on. Raises NotFound."""
        row = await self._row(role.name)
        row.description = role.description
        row.permissions = list(role.permissions)
        row.updated_at = at

    async def remove(self, name: str) -> None:
        """Remove a role. Raises NotFound."""
        await self._session.delete(await self._row(name))

    async def _row(self, name: str) -> RoleRow:
        row = await self._session.scalar(
            select(RoleRow).where(RoleRow.tenant_id == self._tenant_id, RoleRow.name == name)
        )
        if row is None:
            raise NotFound(f"no role {name!r}")
        return row


def _to_role(row: RoleRow) -> Role:
    return Role(row.name, row.description, tuple(row.permissions), is_built_in=False)
