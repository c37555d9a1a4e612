"""Logins of one tenant that wait for their second step."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.domain.login import MOST_ATTEMPTS, PendingLogin, Proof
from services.gateway.store.tables import PendingLoginRow


class PendingLogins:
    """The pending logins of one tenant. One that is too old, or used up, is as good as none."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def add(self, pending: PendingLogin) -> None:
        """Keep a pending login."""
        await self._session.execute(
            insert(PendingLoginRow).values(
                tenant_id=self._tenant_id,
                token_hash=pending.token_hash,
                user_id=pending.user_id,
                proofs=list(pending.proofs),
                enrols=pending.enrols,
                proved_at=pending.proved_at,
                expires_at=pending.expires_at,
            )
        )

    async def get(self, token_hash: bytes, now: datetime) -> PendingLogin | None:
        """Return a pending login."""
        row = await self._session.scalar(
            select(PendingLoginRow).where(*self._is_good(token_hash, now))
        )
        return None if row is None else _to_pending(row)

    async def attempt(self, token_hash: bytes, now: datetime) -> PendingLogin | None:
        """Return a pending login, one attempt of which is spent with that, be it right or wrong."""
        row = await self._session.scalar(
            update(PendingLoginRow)
            .where(*self._is_good(token_hash, now))
            .values(attempts=PendingLoginRow.attempts + 1)
            .returning(PendingLoginRow)
        )
        return None if row is None else _to_pending(row)

    async def take(self, token_hash: bytes) -> bool:
        """Use a pending login up; return whether it was there."""
        taken = await self._session.scalar(
            delete(PendingLoginRow)
            .where(
                PendingLoginRow.tenant_id == self._tenant_id,
                PendingLoginRow.token_hash == token_hash,
            )
            .returning(PendingLoginRow.user_id)
        )
        return taken is not None

    async def forget(self, *, user_id: UUID | None = None) -> None:
        """Remove those of a user; without one, all of the tenant's."""
        theirs = delete(PendingLoginRow).where(PendingLoginRow.tenant_id == self._tenant_id)
        if user_id is not None:
            theirs = theirs.where(PendingLoginRow.user_id == user_id)
        await self._session.execute(theirs)

    def _is_good(self, token_hash: bytes, now: datetime) -> tuple[ColumnElement[bool], ...]:
        return (
            PendingLoginRow.tenant_id == self._tenant_id,
            PendingLoginRow.token_hash == token_hash,
            PendingLoginRow.expires_at > now,
            PendingLoginRow.attempts < MOST_ATTEMPTS,
        )


def _to_pending(row: PendingLoginRow) -> PendingLogin:
    return PendingLogin(
        token_hash=row.token_hash,
        tenant_id=row.tenant_id,
        user_id=row.user_id,
        proofs=tuple(Proof(proof) for proof in row.proofs),
        enrols=row.enrols,
        proved_at=row.proved_at,
        expires_at=row.expires_at,
    )
