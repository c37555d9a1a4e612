"""One tenant's points, as analytics may read them."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.historian import reader
from libs.common.historian.point import Quality
from libs.common.historian.reader import Aggregate, Bucket, Points, SeriesInfo, TextPoint


class History:
    """The historian, for one tenant. Spans are [start, end)."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def find(self, device_id: UUID, metric: str) -> SeriesInfo:
        """Return a device's series. Raises NotFound."""
        return await reader.find_series(self._session, self._tenant_id, device_id, metric)

    async def points(
        self,
        series: SeriesInfo,
        start: datetime,
        end: datetime,
        *,
        limit: int,
        usable: bool = False,
    ) -> Points:
        """Return the oldest points of the span, up to `limit`."""
        return await reader.read_points(
            self._session, series, start, end, limit=limit, usable=usable
        )

    async def newest_usable(
        self, series: SeriesInfo, start: datetime, end: datetime, *, limit: int
    ) -> Points:
        """Return the newest points of the span that are not bad, up to `limit`, oldest first."""
        points = await reader.read_points(
            self._session, series, start, end, limit=limit, newest_first=True, usable=True
        )
        return points[::-1]

    async def usable(
        self, series: SeriesInfo, start: datetime, end: datetime, *, most: int
    ) -> Points | None:
        """Return all points of the span that are not bad; None if it has more than `most`."""
        parts: list[Points] = []
        count = 0
        async for part in reader.stream_points(self._session, series, start, end, usable=True):
            parts.append(part)
            count += len(part)
            if count > most:
                return None
        return Points.join(parts)

    async def texts(
        self, series: SeriesInfo, start: datetime, end: datetime, *, limit: int
    ) -> list[TextPoint]:
        """Return the oldest texts of the span, up to `limit`."""
        return await reader.read_texts(self._session, series, start, end, limit=limit)

    async def buckets(
        self,
        series: SeriesInfo,
        start: datetime,
        end: datetime,
        width: timedelta,
        aggregates: Sequence[Aggregate],
    ) -> list[Bucket]:
        """Return the span's buckets that have points; bad ones do not count."""
        return await reader.read_buckets(self._session, series, start, end, width, aggregates)

    async def qualities(
        self, series: SeriesInfo, start: datetime, end: datetime
    ) -> dict[Quality, int]:
        """Return how many points of the span have which quality."""
        return await reader.count_qualities(self._session, series, start, end)
