"""The quarantine, as its tenant sees it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.ingest.domain.quarantined import Quarantined
from services.ingest.store.tables import QuarantineRow


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
            select(QuarantineRow)
            .where(QuarantineRow.tenant_id == self._tenant_id)
            .order_by(QuarantineRow.received_at.desc(), QuarantineRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(QuarantineRow.received_at, QuarantineRow.id) < before)
        if device_id is not None:
            query = query.where(QuarantineRow.device_id == device_id)
        return [_to_quarantined(row) for row in await self._session.scalars(query)]

    async def discard(self, entry_id: UUID) -> None:
        """Remove an entry for good. Raises NotFound."""
        result = await self._session.execute(
            delete(QuarantineRow)
            .where(QuarantineRow.tenant_id == self._tenant_id, QuarantineRow.id == entry_id)
            .returning(QuarantineRow.id)
        )
        if result.scalar() is None:
            raise NotFound(f"no quarantine entry {entry_id}")


def _to_quarantined(row: QuarantineRow) -> Quarantined:
    return Quarantined(
        id=row.id,
        device_id=row.device_id,
        received_at=row.received_at,
        reason=row.reason,
        detail=row.detail,
        metric=row.metric,
        payload=row.payload,
    )
