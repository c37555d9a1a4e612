"""The quarantine, as its tenant sees it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.ingest.domain.channel import Channel
from services.ingest.domain.quarantined import Overflow, Quarantined
from services.ingest.store.tables import QuarantineOverflowRow, QuarantineRow


class Quarantine:
    """What could not be stored of one tenant's messages."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def page(
        self, limit: int, before: tuple[datetime, UUID] | None, device_id: UUID | None
    ) -> list[Quarantined]:
        """Return up to `limit` entries, newest first, before the given (received_at, id)."""
        query = (
            self._entries()
            .order_by(QuarantineRow.received_at.desc(), QuarantineRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(QuarantineRow.received_at, QuarantineRow.id) < before)
        if device_id is not None:
            query = query.where(QuarantineRow.device_id == device_id)
        return [_to_quarantined(row) for row in await self._session.execute(query)]

    async def get(self, entry_id: UUID) -> tuple[Quarantined, bytes]:
        """Return an entry and its payload. Raises NotFound."""
        query = self._entries().where(QuarantineRow.id == entry_id)
        row = (await self._session.execute(query.add_columns(QuarantineRow.payload))).one_or_none()
        if row is None:
            raise NotFound(f"no quarantine entry {entry_id}")
        return _to_quarantined(row), row.payload

    async def discard(self, entry_id: UUID) -> None:
        """Remove an entry for good. Raises NotFound."""
        result = await self._session.execute(
            delete(QuarantineRow)
            .where(QuarantineRow.tenant_id == self._tenant_id, QuarantineRow.id == entry_id)
            .returning(QuarantineRow.id)
        )
        if result.scalar() is None:
            raise NotFound(f"no quarantine entry {entry_id}")

    async def overflow(self) -> Overflow | None:
        """Return how much gave way to newer entries; None if nothing ever did."""
        row = await self._session.scalar(
            select(QuarantineOverflowRow).where(QuarantineOverflowRow.tenant_id == self._tenant_id)
        )
        return None if row is None else Overflow(row.dropped, row.since, row.latest)

    def _entries(self) -> Select[Any]:
        # Without the payloads: a page of them may be 50 MB.
        return select(
            QuarantineRow.id,
            QuarantineRow.device_id,
            QuarantineRow.received_at,
            QuarantineRow.channel,
            QuarantineRow.reason,
            QuarantineRow.detail,
            QuarantineRow.metric,
            func.octet_length(QuarantineRow.payload).label("size"),
            QuarantineRow.cut_from,
        ).where(QuarantineRow.tenant_id == self._tenant_id)


def _to_quarantined(row: Row[Any]) -> Quarantined:
    return Quarantined(
        id=row.id,
        device_id=row.device_id,
        received_at=row.received_at,
        channel=Channel(row.channel),
        reason=row.reason,
        detail=row.detail,
        metric=row.metric,
        size=row.size,
        cut_from=row.cut_from,
    )
