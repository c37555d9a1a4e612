"""Writing users, who belong to the installation: by the functions of the database that may."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.tenancy.domain.token import TokenPurpose


class Users:
    """The installation's users, as far as a tenant's transaction may touch them."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, new_id: UUID, *, email: str, at: datetime) -> UUID:
        """Add a user and return their id, or that of the one who has the address already.

        Who is new has no password, and who exists keeps theirs.
        """
        added = await self._session.execute(
            text("SELECT tenancy.add_user(:id, :email, :at)"),
            {"id": new_id, "email": email, "at": at},
        )
        user_id: UUID = added.scalar_one()
        return user_id

    async def add_first_admin(
        self, new_id: UUID, *, email: str, password_hash: str, at: datetime
    ) -> bool:
        """Add the platform's first admin if there is no user at all; return whether there was none.

        Until the transaction ends, nobody else can.
        """
        added = await self._session.execute(
            text("SELECT tenancy.add_first_admin(:id, :email, :hash, :at)"),
            {"id": new_id, "email": email, "hash": password_hash, "at": at},
        )
        return bool(added.scalar_one())

    async def set_password(
        self,
        user_id: UUID,
        *,
        seen: str | None,
        new_hash: str | None,
        proved_at: datetime | None = None,
    ) -> bool:
        """Give a user another password, or (None) leave it; note since when the address is proved.

        Return whether it was done: they are not barred and their password's hash was still the one
        that was seen (None: no password). Tokens to set another password are void.
        """
        done = await self._session.execute(
            text("SELECT tenancy.set_password(:id, :seen, :new, :proved)"),
            {"id": user_id, "seen": seen, "new": new_hash, "proved": proved_at},
        )
        return bool(done.scalar_one())

    async def keep_token(
        self, user_id: UUID, token_hash: bytes, purpose: TokenPurpose, until: datetime
    ) -> None:
        """Keep a token that goes to the user's address."""
        await self._session.execute(
            text("SELECT tenancy.keep_user_token(:hash, :id, :purpose, :until)"),
            {"hash": token_hash, "id": user_id, "purpose": purpose, "until": until},
        )

    async def use_token(
        self, token_hash: bytes, purpose: TokenPurpose, now: datetime
    ) -> UUID | None:
        """Use such a token up; return whose it was, None if it is unknown, used or too old."""
        used = await self._session.execute(
            text("SELECT tenancy.use_user_token(:hash, :purpose, :now)"),
            {"hash": token_hash, "purpose": purpose, "now": now},
        )
        user_id: UUID | None = used.scalar_one()
        return user_id

    async def bar(self, user_id: UUID, since: datetime | None) -> bool:
        """Bar a user from every tenant, or (None) let them in again; return whether that is new."""
        changed = await self._session.execute(
            text("SELECT tenancy.bar_user(:id, :since)"), {"id": user_id, "since": since}
        )
        return bool(changed.scalar_one())

    async def forget(self, user_ids: Sequence[UUID]) -> None:
        """Forget those of the users who belong to no tenant any more. Save memberships before."""
        await self._session.flush()
        await self._session.execute(
            text("SELECT tenancy.forget_users(:ids)"), {"ids": list(user_ids)}
        )
