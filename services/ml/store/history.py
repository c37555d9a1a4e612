"""One tenant's points, as ml may read them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.historian import reader
from libs.common.historian.reader import Points, SeriesInfo


class History:
    """The historian, for one tenant. Spans are [start, end); bad points are left out."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def find(self, device_id: UUID, metric: str) -> SeriesInfo:
        """Return a device's series. Raises NotFound."""
        return await reader.find_series(self._session, self._tenant_id, device_id, metric)

    async def points(
        self, series: SeriesInfo, start: datetime, end: datetime, *, limit: int
    ) -> Points:
        """Return the oldest points of the span, up to `limit`."""
        return await reader.read_points(self._session, series, start, end, limit=limit, usable=True)

    async def all_points(
        self, series: SeriesInfo, start: datetime, end: datetime, *, most: int
    ) -> Points | None:
        """Return all points of the span; None if it has more than `most`."""
        parts: list[Points] = []
        count = 0
        async for part in reader.stream_points(self._session, series, start, end, usable=True):
            parts.append(part)
            count += len(part)
            if count > most:
                return None
        return Points.join(parts)
