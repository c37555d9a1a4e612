"""A past for devices: series and points put straight into the historian."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from libs.common.historian.point import Kind, Quality
from tests.database import DatabaseUrls


@dataclass(frozen=True, slots=True)
class Past:
    """A database whose historian is filled as its admin."""

    urls: DatabaseUrls

    async def series(
        self,
        tenant_id: UUID,
        device_id: UUID | None = None,
        metric: str = "temp",
        *,
        kind: Kind = Kind.NUMBER,
        unit: str | None = "°C",
    ) -> "SeriesOfTest":
        """Register a series as ingest does."""
        device_id = device_id or uuid4()
        connection = await asyncpg.connect(self.urls.admin)
        try:
            tenant = await connection.fetchval("SELECT historian.tenant_number($1)", tenant_id)
            number = await connection.fetchval(
                "INSERT INTO historian.series (tenant, device_id, metric, kind, unit)"
                " VALUES ($1, $2, $3, $4, $5) RETURNING id",
                tenant,
                device_id,
                metric,
                int(kind),
                unit,
            )
        finally:
            await connection.close()
        return SeriesOfTest(self, tenant_id, device_id, metric, tenant, number)

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


@dataclass(frozen=True, slots=True)
class SeriesOfTest:
    """A series, and the numbers the historian gave it."""

    past: Past
    tenant_id: UUID
    device_id: UUID
    metric: str
    tenant: int
    id: int

    async def add(
        self, start: datetime, step_s: float, values: Iterable[float], *, quality: int = 0
    ) -> None:
        """Store values, the first at `start`, one each `step_s`."""
        await self.put(
            [(start + timedelta(seconds=i * step_s), v, quality) for i, v in enumerate(values)]
        )

    async def put(self, points: Sequence[tuple[datetime, float | str, int]]) -> None:
        """Store points (time, value, quality), making the days they need."""
        connection = await asyncpg.connect(self.past.urls.admin)
        try:
            days = sorted({ts.date() for ts, _, _ in points})
            for day in days:
                await connection.execute("SELECT historian.ensure_days($1, $1)", day)
            table = "texts" if isinstance(points[0][1], str) else "points"
            await connection.copy_records_to_table(
                table,
                schema_name="historian",
                columns=["ts", "value", "tenant", "series", "quality"],
                records=[(ts, value, self.tenant, self.id, q) for ts, value, q in points],
            )
        finally:
            await connection.close()

    async def count(self) -> int:
        """Return how many numeric points are stored."""
        rows = await self.past.query(
            "SELECT count(*) FROM historian.points WHERE tenant = $1 AND series = $2",
            self.tenant,
            self.id,
        )
        count: int = rows[0][0]
        return count


BAD = int(Quality.BAD)
UNCERTAIN = int(Quality.UNCERTAIN)
