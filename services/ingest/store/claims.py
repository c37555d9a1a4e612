"""Tokens by which devices are claimed."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.ingest.store.tables import ClaimRow


class Claim(NamedTuple):
    """A device that waits to be claimed, and until when."""

    device_id: UUID
    expires_at: datetime


class Claims:
    """The open claims of one tenant's devices, one a device at most."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def open(
        self, device_id: UUID, token_hash: bytes, at: datetime, expires_at: datetime
    ) -> None:
        """Let a device be claimed by a token, and by no other."""
        values = {"token_hash": token_hash, "created_at": at, "expires_at": expires_at}
        await self._session.execute(
            insert(ClaimRow)
            .values(tenant_id=self._tenant_id, device_id=device_id, **values)
            .on_conflict_do_update(index_elements=["tenant_id", "device_id"], set_=values)
        )

    async def find(self, token_hash: bytes) -> Claim | None:
        """Return whose token it is and when it ends. It changes with its device locked."""
        row = (
            await self._session.execute(
                select(ClaimRow.device_id, ClaimRow.expires_at).where(
                    ClaimRow.tenant_id == self._tenant_id, ClaimRow.token_hash == token_hash
                )
            )
        ).one_or_none()
        return None if row is None else Claim(row.device_id, row.expires_at)

    async def remove(self, device_id: UUID) -> None:
        """Let a device be claimed no more."""
        await self._session.execute(
            delete(ClaimRow).where(
                ClaimRow.tenant_id == self._tenant_id, ClaimRow.device_id == device_id
            )
        )
