"""Looking users and tenants up across tenants: before one is known, and for the platform's admins."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.engine import Database
from libs.common.errors import NotFound
from services.tenancy.domain.account import Account, Identity, Invited, Membership
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.tenant import Tenant, TenantStatus


class Accounts:
    """The installation's users, read by role `tenancy_engine` through its look-ups alone."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def identity_of(self, email: str) -> Identity | None:
        """Return whom a login with this address is checked against; None if nobody has it."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT id, password_hash FROM tenancy.user_of_email(:email)"),
                    {"email": email},
                )
            ).one_or_none()
        return None if found is None else Identity(found.id, found.password_hash)

    async def invited(self, token_hash: bytes) -> Invited | None:
        """Return who was invited by this token, be it too old or not; None for an unknown one."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.invitation_of_token(:hash)"), {"hash": token_hash}
                )
            ).one_or_none()
        return None if found is None else Invited(**found._mapping)

    async def get(self, user_id: UUID) -> Account:
        """Return a user with all memberships, whether they may log in or not. Raises NotFound."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.user_of_id(:id)"), {"id": user_id}
                )
            ).one_or_none()
            if found is None:
                raise NotFound(f"no user {user_id}")
            memberships = await _memberships_of(connection, user_id)
        return Account(
            user_id=found.id,
            email=found.email,
            is_platform_admin=found.is_platform_admin,
            is_suspended=found.is_suspended,
            memberships=memberships,
        )

    async def tenants(self, limit: int, after: tuple[datetime, UUID] | None) -> list[Tenant]:
        """Return up to `limit` of all tenants, oldest first, after the given (created_at, id)."""
        at, tenant_id = after or (None, None)
        async with self._engine.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT * FROM tenancy.all_tenants("
                    "cast(:at AS timestamptz), cast(:id AS uuid), :limit)"
                ),
                {"at": at, "id": tenant_id, "limit": limit},
            )
            return [
                Tenant(
                    id=row.tenant_id,
                    slug=row.slug,
                    name=row.name,
                    status=TenantStatus(row.status),
                    created_at=row.created_at,
                    updated_at=row.updated_at,
                    version=row.version,
                )
                for row in rows
            ]


async def _memberships_of(connection: AsyncConnection, user_id: UUID) -> tuple[Membership, ...]:
    rows = await connection.execute(
        text("SELECT * FROM tenancy.memberships_of_user(:id)"), {"id": user_id}
    )
    return tuple(
        Membership(
            tenant_id=row.tenant_id,
            tenant_slug=row.tenant_slug,
            tenant_name=row.tenant_name,
            tenant_status=TenantStatus(row.tenant_status),
            name=row.name,
            status=MemberStatus(row.status),
            roles=tuple(row.roles),
            own_roles={name: tuple(held) for name, held in row.own_roles.items()},
        )
        for row in rows
    )
