"""Invitations that have not been accepted yet."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete
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
        values = {"token_hash": invitation.token_hash, "expires_at": invitation.expires_at}
        await self._session.execute(
            insert(InvitationRow)
            .values(tenant_id=self._tenant_id, user_id=user_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "user_id"], set_=values)
        )

    async def take(self, token_hash: bytes, now: datetime) -> UUID | None:
        """Use an invitation up; return whose it was, None if it is unknown, used or too old."""
        user_id: UUID | None = await self._session.scalar(
            delete(InvitationRow)
            .where(
                InvitationRow.tenant_id == self._tenant_id,
                InvitationRow.token_hash == token_hash,
                InvitationRow.expires_at > now,
            )
            .returning(InvitationRow.user_id)
        )
        return user_id
