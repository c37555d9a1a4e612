"""Looking users and tenants up across tenants: before one is known, and for the platform's admins."""

import hashlib
import json
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from libs.common.db.engine import Database
from libs.common.errors import NotFound
from services.tenancy.domain.account import (
    Account,
    Identity,
    Invited,
    Membership,
    TokenHolder,
)
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.registration import Admits, Registration, RegistrationPolicy
from services.tenancy.domain.second_factor import Kind, Terms
from services.tenancy.domain.tenant import Tenant, TenantStatus
from services.tenancy.domain.token import TokenPurpose
from services.tenancy.store.plans import as_quotas

_NOBODY = UUID(int=0)


class Accounts:
    """The installation's users, read by role `tenancy_engine` through its look-ups alone."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def identity_of(self, email: str) -> Identity | None:
        """Return whom a login with this address is checked against; None if nobody has it."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.user_of_email(:email)"),
                    {"email": email},
                )
            ).one_or_none()
        return (
            None if found is None else (Identity(found.id, found.password_hash, found.is_verified))
        )

    async def invited(self, token_hash: bytes) -> Invited | None:
        """Return who was invited by this token, be it too old or not; None for an unknown one."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.invitation_of_token(:hash)"), {"hash": token_hash}
                )
            ).one_or_none()
        return None if found is None else Invited(**found._mapping)

    async def holder_of(self, token_hash: bytes) -> TokenHolder | None:
        """Return whose a token is that went to their address, be it too old or not."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.user_of_token(:hash)"), {"hash": token_hash}
                )
            ).one_or_none()
        if found is None:
            return None
        return TokenHolder(**{**found._mapping, "purpose": TokenPurpose(found.purpose)})

    async def registered(self, token_hash: bytes) -> Registration | None:
        """Return who registered and was sent this token, be it too old or not."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.registration_of_token(:hash)"),
                    {"hash": token_hash},
                )
            ).one_or_none()
        return None if found is None else Registration(**found._mapping)

    async def registration_of(self, slug: str) -> tuple[UUID, RegistrationPolicy] | None:
        """Return an active tenant that has a policy of whom it lets register; None for any other."""
        async with self._engine.connection() as connection:
            found = (
                await connection.execute(
                    text("SELECT * FROM tenancy.registration_of_slug(:slug)"), {"slug": slug}
                )
            ).one_or_none()
        if found is None:
            return None
        policy = RegistrationPolicy(Admits(found.admits), tuple(found.domains), found.role)
        return found.tenant_id, policy

    async def is_familiar(self, email: str, origin: str, since: datetime) -> bool:
        """Whether the user with this address has logged in from an origin, not longer ago."""
        async with self._engine.connection() as connection:
            user_id = await self._id_of(connection, email)
            # Asked for nobody as well, so that it takes as long.
            found = await connection.scalar(
                text(
                    "SELECT true FROM tenancy.familiar_origins"
                    " WHERE user_id = :id AND origin = :origin AND seen_at > :since"
                ),
                {"id": user_id, "origin": _hash_origin(user_id, origin), "since": since},
            )
        return bool(found)

    async def note_familiar(self, email: str, origin: str, at: datetime) -> None:
        """Note that the user with this address, if there is one, has logged in from there."""
        async with self._engine.connection() as connection:
            user_id = await self._id_of(connection, email)
            if user_id != _NOBODY:
                await connection.execute(
                    text(
                        "INSERT INTO tenancy.familiar_origins (user_id, origin, seen_at)"
                        " VALUES (:id, :origin, :at)"
                        " ON CONFLICT (user_id, origin) DO UPDATE SET seen_at = excluded.seen_at"
                    ),
                    {"id": user_id, "origin": _hash_origin(user_id, origin), "at": at},
                )

    async def forget_expired(self, now: datetime, *, familiar_before: datetime) -> None:
        """Remove tokens and registrations that are too old, and origins not seen since."""
        async with self._engine.connection() as connection:
            for table in ("user_tokens", "registrations"):
                await connection.execute(
                    text(f"DELETE FROM tenancy.{table} WHERE expires_at <= :now"),  # noqa: S608 - a table of ours
                    {"now": now},
                )
            await connection.execute(
                text("DELETE FROM tenancy.familiar_origins WHERE seen_at < :before"),
                {"before": familiar_before},
            )

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
            terms = await _terms_of(connection, user_id)
        return Account(
            user_id=found.id,
            email=found.email,
            is_platform_admin=found.is_platform_admin,
            is_suspended=found.is_suspended,
            is_verified=found.is_verified,
            memberships=memberships,
            terms=terms,
        )

    async def tenants_of(self, user_id: UUID) -> list[UUID]:
        """Return the tenants a user belongs to, invited or not yet."""
        async with self._engine.connection() as connection:
            return [m.tenant_id for m in await _memberships_of(connection, user_id)]

    async def user_of_passkey(self, credential_id: bytes) -> UUID | None:
        """Return whose passkey it is; None if nobody's."""
        async with self._engine.connection() as connection:
            found: UUID | None = await connection.scalar(
                text("SELECT tenancy.user_of_passkey(:id)"), {"id": credential_id}
            )
        return found

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
            return [_to_tenant(row) for row in rows]

    async def _id_of(self, connection: AsyncConnection, email: str) -> UUID:
        found: UUID | None = await connection.scalar(
            text("SELECT id FROM tenancy.user_of_email(:email)"), {"email": email}
        )
        return found or _NOBODY


def _hash_origin(user_id: UUID, origin: str) -> bytes:
    return hashlib.sha256(user_id.bytes + origin.encode()).digest()


async def _memberships_of(connection: AsyncConnection, user_id: UUID) -> tuple[Membership, ...]:
    rows = await connection.execute(
        text("SELECT * FROM tenancy.memberships_of_user(:id)"), {"id": user_id}
    )
    limits = {
        limit.tenant_id: frozenset(limit.device_groups)
        for limit in await connection.execute(
            text("SELECT * FROM tenancy.reach_of_user(:id)"), {"id": user_id}
        )
    }
    return tuple(
        Membership(
            tenant_id=row.tenant_id,
            tenant_slug=row.tenant_slug,
            tenant_name=row.tenant_name,
            tenant_status=TenantStatus(row.tenant_status),
            tenant_plan=row.tenant_plan,
            name=row.name,
            status=MemberStatus(row.status),
            roles=tuple(row.roles),
            own_roles={name: tuple(held) for name, held in row.own_roles.items()},
            device_groups=limits.get(row.tenant_id),
        )
        for row in rows
    )


def _to_tenant(row: Row[Any]) -> Tenant:
    document = row.own_quotas
    return Tenant(
        id=row.tenant_id,
        slug=row.slug,
        name=row.name,
        status=TenantStatus(row.status),
        created_at=row.created_at,
        updated_at=row.updated_at,
        version=row.version,
        plan=row.plan,
        plan_version=row.plan_version,
        # A function's columns come as the driver has them: JSON as text.
        own_quotas=as_quotas(json.loads(document) if isinstance(document, str) else document),
        status_reason=row.status_reason,
        erased_from=row.erased_from,
    )


async def _terms_of(connection: AsyncConnection, user_id: UUID) -> Terms:
    row = (
        await connection.execute(text("SELECT * FROM tenancy.login_terms(:id)"), {"id": user_id})
    ).one()
    has = {
        Kind.TOTP: row.has_codes,
        Kind.PASSKEY: row.has_passkey,
        Kind.RECOVERY: row.has_recovery,
    }
    return Terms(tuple(kind for kind, there in has.items() if there), frozenset(row.required_by))
