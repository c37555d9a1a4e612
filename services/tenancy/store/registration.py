"""Whom a tenant lets register themselves, and who has."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.tenancy.domain.registration import NOBODY, Admits, RegistrationPolicy
from services.tenancy.domain.registration import Registration as Registered
from services.tenancy.store.tables import RegistrationPolicyRow, RegistrationRow


class Registration:
    """One tenant's policy, and who registered by it and has not confirmed the address."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def policy(self) -> RegistrationPolicy:
        """Return the tenant's policy."""
        row = await self._session.scalar(
            select(RegistrationPolicyRow).where(RegistrationPolicyRow.tenant_id == self._tenant_id)
        )
        if row is None:
            return NOBODY
        return RegistrationPolicy(Admits(row.admits), tuple(row.domains), row.role)

    async def set_policy(self, policy: RegistrationPolicy, at: datetime) -> None:
        """Save the tenant's policy."""
        values = {
            "admits": policy.admits,
            "domains": list(policy.domains),
            "role": policy.role,
            "updated_at": at,
        }
        await self._session.execute(
            insert(RegistrationPolicyRow)
            .values(tenant_id=self._tenant_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id"], set_=values)
        )

    async def add(self, registered: Registered) -> None:
        """Keep who registered, until they confirm the address."""
        self._session.add(
            RegistrationRow(
                tenant_id=self._tenant_id,
                id=registered.id,
                email=registered.email,
                name=registered.name,
                password_hash=registered.password_hash,
                expires_at=registered.expires_at,
            )
        )
        await self._session.flush()

    async def keep_token(self, registration_id: UUID, token_hash: bytes, until: datetime) -> bool:
        """Keep the token that goes to the address; return whether there is still who registered."""
        found = await self._session.scalar(
            update(RegistrationRow)
            .where(
                RegistrationRow.tenant_id == self._tenant_id, RegistrationRow.id == registration_id
            )
            .values(token_hash=token_hash, expires_at=until)
            .returning(RegistrationRow.id)
        )
        return found is not None

    async def take(self, token_hash: bytes, now: datetime) -> str | None:
        """Use a token up; return the address, of which nobody else's registration holds any more.

        None if the token is unknown, used or too old.
        """
        email: str | None = await self._session.scalar(
            delete(RegistrationRow)
            .where(
                RegistrationRow.tenant_id == self._tenant_id,
                RegistrationRow.token_hash == token_hash,
                RegistrationRow.expires_at > now,
            )
            .returning(RegistrationRow.email)
        )
        if email is not None:
            await self._session.execute(
                delete(RegistrationRow).where(
                    RegistrationRow.tenant_id == self._tenant_id, RegistrationRow.email == email
                )
            )
        return email
