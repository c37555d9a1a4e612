"""Invitations that have not been accepted yet."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, or_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.tenancy.domain.invitation import Invitation
from services.tenancy.store.tables import InvitationRow


class Invitations:
    """The invitations of one tenant: one for each member who has not joined yet."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def keep(self, user_id: UUID, invitation: Invitation) -> None:
        """Keep a member's invitation; the one before is void."""
        values = {
            "token_hash": invitation.token_hash,
            "mailed_hash": None,
            "expires_at": invitation.expires_at,
        }
        await self._session.execute(
            insert(InvitationRow)
            .values(tenant_id=self._tenant_id, user_id=user_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "user_id"], set_=values)
        )

    async def keep_mailed(self, user_id: UUID, token_hash: bytes) -> datetime | None:
        """Keep the token that goes to the address; the one before is void. Return how long it is good.

        None if there is no invitation any more.
        """
        until: datetime | None = await self._session.scalar(
            update(InvitationRow)
            .where(InvitationRow.tenant_id == self._tenant_id, InvitationRow.user_id == user_id)
            .values(mailed_hash=token_hash)
            .returning(InvitationRow.expires_at)
        )
        return until

    async def take(self, token_hash: bytes, now: datetime) -> UUID | None:
        """Use an invitation up; return whose it was, None if it is unknown, used or too old."""
        user_id: UUID | None = await self._session.scalar(
            delete(InvitationRow)
            .where(
                InvitationRow.tenant_id == self._tenant_id,
                or_(
                    InvitationRow.token_hash == token_hash,
                    InvitationRow.mailed_hash == token_hash,
                ),
                InvitationRow.expires_at > now,
            )
            .returning(InvitationRow.user_id)
        )
        return user_id

    async def void(self, user_id: UUID) -> None:
        """Forget a member's invitation, if they have one."""
        await self._session.execute(
            delete(InvitationRow).where(
                InvitationRow.tenant_id == self._tenant_id, InvitationRow.user_id == user_id
            )
        )
