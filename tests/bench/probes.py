"""What sees points and alerts as soon as they are committed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from uuid import UUID

import asyncpg

from tests.bench.generator import METRICS
from tests.bench.plant import Plant, as_time

POLL_S = 0.005


class StoredProbe:
    """Sees points of some devices as soon as they are committed."""

    def __init__(self, plant: Plant, devices: Sequence[int], since_ms: float) -> None:
        """`devices`: their places in the plant."""
        since = as_time(int(since_ms) - 1)
        self._plant = plant
        self._newest = {int(plant.series[device * len(METRICS)]): since for device in devices}
        self.latencies_s: list[float] = []

    async def look(self, database: asyncpg.Connection) -> None:
        """Note what has come since the last look."""
        rows = await database.fetch(
            """
            SELECT w.series, p.ts FROM unnest($2::int[], $3::timestamptz[]) AS w(series, newest)
            CROSS JOIN LATERAL (
              SELECT ts FROM historian.points
              WHERE tenant = $1 AND series = w.series AND ts > w.newest
            ) AS p
            """,
            self._plant.tenant,
            list(self._newest),
            list(self._newest.values()),
        )
        now = time.time()
        for row in rows:
            self._newest[row["series"]] = max(row["ts"], self._newest[row["series"]])
            self.latencies_s.append(now - row["ts"].timestamp())


class AlertProbe:
    """Sees alerts (or firings) of the plant's rules as soon as they are committed."""

    def __init__(self, plant: Plant, due_ms: Mapping[UUID, int], parts: frozenset[str]) -> None:
        self._tenant_id = plant.tenant_id
        self._due_ms = dict(due_ms)
        self._query = (
            "SELECT device_id FROM alerting.alerts WHERE tenant_id = $1"
            if "alerting" in parts
            else "SELECT device_id FROM rules.rule_state"
            " WHERE tenant_id = $1 AND fired_at IS NOT NULL"
        )
        self.latencies_s: list[float] = []

    @property
    def missing(self) -> int:
        """How many alarms were not seen."""
        return len(self._due_ms)

    async def look(self, database: asyncpg.Connection) -> None:
        """Note what has come since the last look."""
        rows = await database.fetch(self._query, self._tenant_id)
        now = time.time()
        for row in rows:
            due_ms = self._due_ms.pop(row["device_id"], None)
            if due_ms is not None:
                self.latencies_s.append(now - due_ms / 1000)


@contextlib.asynccontextmanager
async def polling(
    url: str, looks: Sequence[Callable[[asyncpg.Connection], Awaitable[None]]]
) -> AsyncIterator[None]:
    """Let each look again every 5 ms, on a connection of its own, while the block lasts."""

    async def poll(look: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
        database = await asyncpg.connect(url)
        try:
            while True:
                await look(database)
                await asyncio.sleep(POLL_S)
        finally:
            database.terminate()

    tasks = [asyncio.create_task(poll(look)) for look in looks]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
