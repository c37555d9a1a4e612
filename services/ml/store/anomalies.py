"""Anomalies of one tenant."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.errors import NotFound
from services.ml.domain.excursion import Anomaly
from services.ml.store.tables import AnomalyRow


class Anomalies:
    """The anomalies of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def get(self, anomaly_id: UUID) -> Anomaly:
        """Return an anomaly. Raises NotFound."""
        row = await self._session.scalar(
            select(AnomalyRow).where(
                AnomalyRow.tenant_id == self._tenant_id, AnomalyRow.id == anomaly_id
            )
        )
        if row is None:
            raise NotFound(f"no anomaly {anomaly_id}")
        return _to_anomaly(row)

    async def page(
        self,
        limit: int,
        before: tuple[datetime, UUID] | None,
        *,
        model_id: UUID | None,
        device_id: UUID | None,
        start: datetime | None,
        end: datetime | None,
    ) -> list[Anomaly]:
        """Return up to `limit` anomalies that began in [start, end), newest first, before (ts, id)."""
        query = (
            select(AnomalyRow)
            .where(AnomalyRow.tenant_id == self._tenant_id)
            .order_by(AnomalyRow.ts.desc(), AnomalyRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tuple_(AnomalyRow.ts, AnomalyRow.id) < before)
        if model_id is not None:
            query = query.where(AnomalyRow.model_id == model_id)
        if device_id is not None:
            query = query.where(AnomalyRow.device_id == device_id)
        if start is not None:
            query = query.where(AnomalyRow.ts >= start)
        if end is not None:
            query = query.where(AnomalyRow.ts < end)
        return [_to_anomaly(row) for row in await self._session.scalars(query)]

    async def end(self, model_id: UUID, at: datetime) -> None:
        """End a model's excursion, if one is under way; its own points have not."""
        await self._session.execute(
            update(AnomalyRow)
            .where(
                AnomalyRow.tenant_id == self._tenant_id,
                AnomalyRow.model_id == model_id,
                AnomalyRow.ended_at.is_(None),
            )
            .values(ended_at=at)
        )


def _to_anomaly(row: AnomalyRow) -> Anomaly:
    return Anomaly(
        id=row.id,
        model_id=row.model_id,
        model_version=row.model_version,
        device_id=row.device_id,
        metric=row.metric,
        ts=row.ts,
        value=row.value,
        expected=row.expected,
        z=row.z,
        score=row.score,
        peak_value=row.peak_value,
        peak_z=row.peak_z,
        points=row.points,
        ended_at=row.ended_at,
        detected_at=row.detected_at,
    )
