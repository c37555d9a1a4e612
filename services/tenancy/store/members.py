"""The users of one tenant."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, or_, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.auth.roles import ADMIN
from libs.common.errors import Conflict, NotFound
from services.tenancy.domain.member import Member, MemberStatus
from services.tenancy.domain.reach import Groups
from services.tenancy.store.tables import MembershipRow, UserRow


class Members:
    """The memberships of one tenant, with what it may know of their users."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, member: Member) -> None:
        """Let a user who exists join. Raises Conflict if they belong to the tenant already."""
        row = MembershipRow(
            tenant_id=self._tenant_id,
            user_id=member.id,
            name=member.name,
            roles=list(member.roles),
            status=member.status,
            created_at=member.created_at,
            updated_at=member.updated_at,
            version=member.version,
            device_groups=_kept(member.device_groups),
        )
        try:
            async with self._session.begin_nested():
                self._session.add(row)
        except IntegrityError as error:
            if "memberships_pkey" in str(error.orig):
                raise Conflict(f"{member.email} belongs to this tenant already") from error
            raise

    async def get(self, user_id: UUID) -> Member:
        """Return a member. Raises NotFound."""
        query = self._members().where(MembershipRow.user_id == user_id)
        found = (await self._session.execute(query)).one_or_none()
        if found is None:
            raise NotFound(f"no user {user_id}")
        return _to_member(*found)

    async def with_email(self, email: str) -> Member | None:
        """Return the member with this address, if there is one."""
        found = (
            await self._session.execute(self._members().where(UserRow.email == email))
        ).one_or_none()
        return None if found is None else _to_member(*found)

    async def page(
        self,
        limit: int,
        after: tuple[datetime, UUID] | None,
        *,
        text: str | None = None,
        role: str | None = None,
        status: MemberStatus | None = None,
    ) -> list[Member]:
        """Return up to `limit` members, oldest first, after the given (created_at, id).

        Those alone who have `text` in name or address, a role, or a status, where these are given.
        """
        query = (
            self._members().order_by(MembershipRow.created_at, MembershipRow.user_id).limit(limit)
        )
        if after is not None:
            query = query.where(tuple_(MembershipRow.created_at, MembershipRow.user_id) > after)
        if text:
            query = query.where(
                or_(
                    MembershipRow.name.icontains(text, autoescape=True),
                    UserRow.email.icontains(text, autoescape=True),
                )
            )
        if role is not None:
            query = query.where(MembershipRow.roles.contains([role]))
        if status is not None:
            query = query.where(MembershipRow.status == status)
        return [_to_member(*found) for found in await self._session.execute(query)]

    async def ids(self) -> Sequence[UUID]:
        """Return all members' user ids."""
        query = select(MembershipRow.user_id).where(MembershipRow.tenant_id == self._tenant_id)
        return (await self._session.scalars(query)).all()

    async def count(self) -> int:
        """Return how many members there are, invited ones too."""
        query = select(func.count()).where(MembershipRow.tenant_id == self._tenant_id)
        return await self._session.scalar(query) or 0

    async def update(self, member: Member) -> None:
        """Save what may change of a member. Raises NotFound."""
        row = await self._row(member.id)
        row.name = member.name
        row.roles = list(member.roles)
        row.status = member.status
        row.updated_at = member.updated_at
        row.version = member.version
        row.device_groups = _kept(member.device_groups)

    async def remove(self, user_id: UUID) -> None:
        """End a membership. Raises NotFound."""
        await self._session.delete(await self._row(user_id))
        await self._session.flush()

    async def has_administrator(self, *, besides: UUID | None = None) -> bool:
        """Whether someone, `besides` the one given, can administer it. Lock the tenant before."""
        query = select(func.count()).where(
            MembershipRow.tenant_id == self._tenant_id,
            MembershipRow.status == MemberStatus.ACTIVE,
            MembershipRow.roles.contains([ADMIN]),
            MembershipRow.device_groups.is_(None),
        )
        if besides is not None:
            query = query.where(MembershipRow.user_id != besides)
        return bool(await self._session.scalar(query))

    async def has_role(self, role: str) -> bool:
        """Whether any member has the role."""
        query = select(func.count()).where(
            MembershipRow.tenant_id == self._tenant_id, MembershipRow.roles.contains([role])
        )
        return bool(await self._session.scalar(query))

    def _members(self) -> Select[MembershipRow, str]:
        return (
            select(MembershipRow, UserRow.email)
            .join(UserRow, UserRow.id == MembershipRow.user_id)
            .where(MembershipRow.tenant_id == self._tenant_id)
        )

    async def _row(self, user_id: UUID) -> MembershipRow:
        row = await self._session.scalar(
            select(MembershipRow).where(
                MembershipRow.tenant_id == self._tenant_id, MembershipRow.user_id == user_id
            )
        )
        if row is None:
            raise NotFound(f"no user {user_id}")
        return row


def _to_member(row: MembershipRow, email: str) -> Member:
    return Member(
        id=row.user_id,
        email=email,
        name=row.name,
        roles=tuple(row.roles),
        status=MemberStatus(row.status),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        device_groups=None if row.device_groups is None else frozenset(row.device_groups),
    )


def _kept(groups: Groups) -> list[UUID] | None:
    return None if groups is None else sorted(groups)
