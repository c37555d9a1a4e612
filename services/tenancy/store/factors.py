"""What proves users beside their passwords. It belongs to the user, in whatever tenant they are."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.tenancy.domain.second_factor import OneTimeCodes, Passkey
from services.tenancy.store.tables import OneTimeCodesRow, PasskeyRow, RecoveryCodeRow


class Factors:
    """The factors of users who are members of the tenants that the transaction is bound to."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock(self, user_id: UUID) -> None:
        """Let nobody else change this user's factors until the transaction ends."""
        await self._session.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"tenancy.factors {user_id}"},
        )

    async def codes(self, user_id: UUID) -> OneTimeCodes | None:
        """Return the user's authenticator app, confirmed or not; None if there is none."""
        row = await self._session.scalar(
            select(OneTimeCodesRow).where(OneTimeCodesRow.user_id == user_id)
        )
        if row is None:
            return None
        return OneTimeCodes(
            id=row.id,
            user_id=row.user_id,
            sealed_secret=row.secret,
            created_at=row.created_at,
            confirmed_at=row.confirmed_at,
            last_used_at=row.last_used_at,
            last_step=row.last_step,
            failures=row.failures,
            failed_at=row.failed_at,
        )

    async def keep_codes(self, codes: OneTimeCodes) -> None:
        """Keep an authenticator app in the place of the one before."""
        await self.remove_codes(codes.user_id)
        await self._session.execute(
            insert(OneTimeCodesRow).values(
                user_id=codes.user_id,
                id=codes.id,
                secret=codes.sealed_secret,
                created_at=codes.created_at,
            )
        )

    async def note_code(
        self, user_id: UUID, *, step: int | None, at: datetime, confirms: bool = False
    ) -> None:
        """Note a code that was right, of which step it was, or (None) one that was wrong."""
        values: dict[str, object] = {"failures": OneTimeCodesRow.failures + 1, "failed_at": at}
        if step is not None:
            values = {"failures": 0, "failed_at": None, "last_step": step, "last_used_at": at}
            if confirms:
                values["confirmed_at"] = at
        await self._session.execute(
            update(OneTimeCodesRow).where(OneTimeCodesRow.user_id == user_id).values(values)
        )

    async def remove_codes(self, user_id: UUID) -> None:
        """Forget the user's authenticator app."""
        await self._session.execute(
            delete(OneTimeCodesRow).where(OneTimeCodesRow.user_id == user_id)
        )

    async def recovery_codes_left(self, user_id: UUID) -> int:
        """Return how many recovery codes the user has not used yet."""
        count = await self._session.scalar(
            select(func.count())
            .select_from(RecoveryCodeRow)
            .where(RecoveryCodeRow.user_id == user_id)
        )
        return count or 0

    async def keep_recovery_codes(self, user_id: UUID, hashes: Sequence[bytes]) -> None:
        """Keep these recovery codes; those before are void."""
        await self._session.execute(
            delete(RecoveryCodeRow).where(RecoveryCodeRow.user_id == user_id)
        )
        if hashes:
            await self._session.execute(
                insert(RecoveryCodeRow),
                [{"user_id": user_id, "code_hash": code_hash} for code_hash in hashes],
            )

    async def take_recovery_code(self, user_id: UUID, code_hash: bytes) -> bool:
        """Use a recovery code up; return whether it was one."""
        taken = await self._session.scalar(
            delete(RecoveryCodeRow)
            .where(RecoveryCodeRow.user_id == user_id, RecoveryCodeRow.code_hash == code_hash)
            .returning(RecoveryCodeRow.user_id)
        )
        return taken is not None

    async def passkeys(self, user_id: UUID) -> list[Passkey]:
        """Return the user's passkeys, the oldest first."""
        rows = await self._session.scalars(
            select(PasskeyRow).where(PasskeyRow.user_id == user_id).order_by(PasskeyRow.created_at)
        )
        return [
            Passkey(
                id=row.id,
                user_id=row.user_id,
                credential_id=row.credential_id,
                public_key=row.public_key,
                sign_count=row.sign_count,
                transports=tuple(row.transports),
                name=row.name,
                created_at=row.created_at,
                last_used_at=row.last_used_at,
            )
            for row in rows
        ]

    async def add_passkey(self, passkey: Passkey) -> None:
        """Keep a passkey."""
        await self._session.execute(
            insert(PasskeyRow).values(
                id=passkey.id,
                user_id=passkey.user_id,
                credential_id=passkey.credential_id,
                public_key=passkey.public_key,
                sign_count=passkey.sign_count,
                transports=list(passkey.transports),
                name=passkey.name,
                created_at=passkey.created_at,
            )
        )

    async def note_passkey(self, passkey_id: UUID, *, sign_count: int, at: datetime) -> None:
        """Note that a passkey was used, and what its counter says."""
        await self._session.execute(
            update(PasskeyRow)
            .where(PasskeyRow.id == passkey_id)
            .values(sign_count=sign_count, last_used_at=at)
        )

    async def rename_passkey(self, user_id: UUID, passkey_id: UUID, name: str) -> None:
        """Give a passkey another name. Raises NotFound if the user has none such."""
        renamed = await self._session.scalar(
            update(PasskeyRow)
            .where(PasskeyRow.user_id == user_id, PasskeyRow.id == passkey_id)
            .values(name=name)
            .returning(PasskeyRow.id)
        )
        if renamed is None:
            raise NotFound(f"no passkey {passkey_id}")

    async def remove(self, user_id: UUID, factor_id: UUID) -> None:
        """Forget one of the user's factors. Raises NotFound if they have none such."""
        for row in (PasskeyRow, OneTimeCodesRow):
            removed = await self._session.scalar(
                delete(row).where(row.user_id == user_id, row.id == factor_id).returning(row.id)
            )
            if removed is not None:
                return
        raise NotFound(f"no factor {factor_id}")

    async def remove_all(self, user_id: UUID) -> None:
        """Forget all of the user's factors, and the recovery codes."""
        for row in (PasskeyRow, OneTimeCodesRow, RecoveryCodeRow):
            await self._session.execute(delete(row).where(row.user_id == user_id))
