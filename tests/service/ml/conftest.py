"""Ml as one process: real PostgreSQL, the local bus; telemetry as ingest says it."""

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Subscription
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.base import Message, from_message
from libs.common.events.ingest import TelemetryReceived
from libs.common.events.ml import AnomalyDetected
from services.ml.app import build
from services.ml.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.history import Past, SeriesOfTest
from tests.waiting import until

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000

USUAL = [48.0, 49.0, 50.0, 51.0, 52.0] * 12
"""Median 50, MAD 1: with the usual threshold, below 44.8 or above 55.2 is an anomaly."""


@dataclass(slots=True)
class World:
    """A running ml, a tenant, the bus it is on, and what was heard there."""

    urls: DatabaseUrls
    settings: Settings
    keys: KeySource
    principal_headers: PrincipalHeaders
    bus: LocalBus
    tenant_id: UUID = field(default_factory=uuid4)
    heard: list[AnomalyDetected] = field(default_factory=list)
    _http: httpx2.AsyncClient | None = None

    @property
    def past(self) -> Past:
        """The historian."""
        return Past(self.urls)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A worker, from its start to its end. Each takes a new bus: the old log, its own offsets."""
        bus = self.bus = LocalBus(self.urls.bus, SystemClock())
        bus.subscribe(Subscription("test.listener", frozenset({AnomalyDetected.type})), self._hear)
        app = build(self.settings, bus, SystemClock(), keys=self.keys)
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://ml") as http,
        ):
            await bus.start()
            self._http = http
            try:
                yield
            finally:
                await bus.stop()

    async def _hear(self, messages: Sequence[Message]) -> None:
        self.heard += [from_message(AnomalyDetected, m) for m in messages]

    async def call(
        self, method: str, path: str, body: object = None, *, tenant_id: UUID | None = None
    ) -> httpx2.Response:
        """Call the API as someone of the tenant who may do all."""
        assert self._http is not None
        return await self._http.request(
            method,
            f"/api/v1/ml{path}",
            json=body,
            headers=self.principal_headers(tenant_id or self.tenant_id),
        )

    async def trained_series(self, metric: str = "vibration") -> SeriesOfTest:
        """Return a series that had USUAL values, one a second, up to noon."""
        series = await self.past.series(self.tenant_id, metric=metric)
        await series.add(NOON - timedelta(seconds=len(USUAL)), 1, USUAL)
        return series

    async def model(self, series: SeriesOfTest, **changes: Any) -> dict[str, Any]:
        """Train a model from the hour before noon, and wait until it works."""
        answer = await self.call("POST", "/models", a_model(series, **changes))
        assert answer.status_code == 201, answer.text
        await self.settled()
        body: dict[str, Any] = answer.json()
        return body

    async def anomalies(self, query: str = "") -> list[dict[str, Any]]:
        """Return the tenant's anomalies, newest first."""
        answer = await self.call("GET", f"/anomalies{query}")
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    async def send(
        self,
        series: SeriesOfTest,
        *points: tuple[float, float],
        quality: int = 0,
        received: float | None = None,
    ) -> TelemetryReceived:
        """Say that points (seconds after noon, value) were received, and wait until handled.

        `received`: in seconds after noon; when the newest was measured if left out.
        """
        batch = TelemetryReceived(
            at=NOON
            + timedelta(seconds=max(s for s, _ in points) if received is None else received),
            shard=0,
            tenants=array("i", [series.tenant] * len(points)).tobytes(),
            series=array("i", [series.id] * len(points)).tobytes(),
            ts=array("q", [NOON_US + round(s * 1_000_000) for s, _ in points]).tobytes(),
            values=array("d", [v for _, v in points]).tobytes(),
            quality=bytes([quality] * len(points)),
        )
        await self.resend(batch)
        return batch

    async def resend(self, *batches: TelemetryReceived) -> None:
        """Put batches onto the bus, and wait until handled."""
        await self.bus.publish([batch.to_message() for batch in batches])
        await self.settled()

    async def settled(self) -> None:
        """Wait until everyone has heard and handled all that was said up to now."""
        await until(self._has_read_all, "everything on the bus is handled")

    async def _has_read_all(self) -> bool:
        head = await self._head()
        # What was handled may have said something in turn.
        return all(s.position >= head for s in self.bus._subscribers) and head == await self._head()

    async def _head(self) -> int:
        rows = await self.past.query("SELECT coalesce(max(position), 0) FROM bus.log")
        head: int = rows[0][0]
        return head


def a_model(series: SeriesOfTest, **changes: Any) -> dict[str, Any]:
    """Return the body of a model that learns from the hour before noon."""
    return {
        "name": f"vibration {uuid4()}",
        "type": "robust_zscore",
        "device_id": str(series.device_id),
        "metric": series.metric,
        "train": {"from": (NOON - timedelta(hours=1)).isoformat(), "to": NOON.isoformat()},
        "calm_points": 3,
        **changes,
    }


@pytest.fixture
async def stopped(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> World:
    """Ml, not yet running, with a log that nobody has read."""
    settings = Settings(
        database_url=database_urls.rw("ml"),
        engine_database_url=database_urls.engine("ml"),
        training_points=1_000,
    )
    return World(database_urls, settings, keys, principal_headers, bus)


@pytest.fixture
async def world(stopped: World) -> AsyncIterator[World]:
    """Ml, running."""
    async with stopped.running():
        yield stopped
