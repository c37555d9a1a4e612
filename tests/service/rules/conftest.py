"""Rules as one process: real PostgreSQL, the local bus; telemetry as ingest says it."""

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Subscription
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.base import Event, Message, from_message
from libs.common.events.ingest import TelemetryReceived
from libs.common.events.rules import RuleChanged, RuleCleared, RuleTriggered
from services.rules.app import build
from services.rules.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.waiting import until

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
SECOND = 1_000_000


@dataclass(slots=True)
class World:
    """A running rules service, the bus it is on, and what was heard there."""

    bus: LocalBus
    urls: DatabaseUrls
    settings: Settings
    keys: KeySource
    principal_headers: PrincipalHeaders
    heard: list[Event] = field(default_factory=list)
    _http: httpx2.AsyncClient | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A worker, from its start to its end. Each takes a new bus: the old log, its own offsets."""
        bus = self.bus = LocalBus(self.urls.bus, SystemClock())
        bus.subscribe(
            Subscription("test.listener", frozenset({RuleTriggered.type, RuleCleared.type})),
            self._hear,
        )
        app = build(self.settings, bus, SystemClock(), keys=self.keys)
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://rules") as http,
        ):
            await bus.start()
            self._http = http
            try:
                yield
            finally:
                await bus.stop()

    async def _hear(self, messages: Sequence[Message]) -> None:
        classes = {c.type: c for c in (RuleTriggered, RuleCleared, RuleChanged)}
        self.heard += [from_message(classes[m.type], m) for m in messages]

    @property
    def http(self) -> httpx2.AsyncClient:
        """A client of the running worker."""
        assert self._http is not None
        return self._http

    async def call(
        self, tenant_id: UUID, method: str, path: str, body: object = None, **headers: str
    ) -> httpx2.Response:
        """Call the API as someone of the tenant who may do all."""
        return await self.http.request(
            method,
            f"/api/v1/rules{path}",
            json=body,
            headers={**self.principal_headers(tenant_id), **headers},
        )

    async def create(self, tenant_id: UUID, device_id: UUID, **changes: object) -> UUID:
        """Create a rule and wait until the worker evaluates it."""
        answer = await self.call(tenant_id, "POST", "", a_rule(device_id, **changes))
        assert answer.status_code == 201, answer.text
        rule_id = UUID(answer.json()["id"])
        await self.settled()
        return rule_id

    async def settled(self) -> None:
        """Wait until the worker has heard and handled all that was said up to now."""
        await until(self._has_read_all, "everything on the bus is handled")

    async def _has_read_all(self) -> bool:
        head = await self._head()
        # What was handled may have said something in turn.
        return all(s.position >= head for s in self.bus._subscribers) and head == await self._head()

    async def _head(self) -> int:
        return await self.fetchval("SELECT coalesce(max(position), 0) FROM bus.log")

    async def series(self, tenant_id: UUID, device_id: UUID, metric: str) -> tuple[int, int]:
        """Register a series as ingest does; return the numbers of tenant and series."""
        tenant = await self.fetchval("SELECT historian.tenant_number($1)", tenant_id)
        number = await self.fetchval(
            "INSERT INTO historian.series (tenant, device_id, metric, kind)"
            " VALUES ($1, $2, $3, 0) RETURNING id",
            tenant,
            device_id,
            metric,
        )
        return tenant, number

    async def send(
        self,
        series: tuple[int, int],
        *points: tuple[float, float],
        shard: int = 0,
        quality: int = 0,
        received: float | None = None,
    ) -> TelemetryReceived:
        """Say that points (seconds after noon, value) were received, and wait until handled."""
        batch = a_batch(
            [(series, s, v) for s, v in points], shard=shard, quality=quality, received=received
        )
        await self.resend(batch)
        return batch

    async def resend(self, *batches: TelemetryReceived) -> None:
        """Put batches onto the bus, and wait until handled."""
        await self.bus.publish([batch.to_message() for batch in batches])
        await self.settled()

    def story(self, *rules: UUID) -> list[str]:
        """Return what was heard of these rules: "triggered 95.0", "cleared 80.0 recovered"."""
        lines = []
        for event in self.heard:
            if isinstance(event, RuleTriggered) and event.rule_id in rules:
                lines.append(f"triggered {event.value}")
            elif isinstance(event, RuleCleared) and event.rule_id in rules:
                lines.append(f"cleared {event.value} {event.reason}")
        return lines

    async def fetchval(self, sql: str, *arguments: object) -> int:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            value: int = await connection.fetchval(sql, *arguments)
            return value
        finally:
            await connection.close()


def a_rule(device_id: UUID, /, **changes: object) -> dict[str, object]:
    """Return the body of a rule: critical above 90, clear at 80 or below."""
    return {
        "name": "bearing too hot",
        "type": "threshold",
        "device_id": str(device_id),
        "metric": "temp",
        "condition": {"operator": "gt", "value": 90, "clear_value": 80},
        "severity": "critical",
        **changes,
    }


def a_batch(
    points: Sequence[tuple[tuple[int, int], float, float]],
    *,
    shard: int = 0,
    quality: int = 0,
    received: float | None = None,
) -> TelemetryReceived:
    """Return a batch of points ((tenant, series), seconds after noon, value).

    `received`: in seconds after noon; when the newest was measured if left out.
    """
    return TelemetryReceived(
        id=uuid4(),
        at=NOON + timedelta(seconds=max(s for _, s, _ in points) if received is None else received),
        shard=shard,
        tenants=array("i", [numbers[0] for numbers, _, _ in points]).tobytes(),
        series=array("i", [numbers[1] for numbers, _, _ in points]).tobytes(),
        ts=array("q", [NOON_US + round(s * SECOND) for _, s, _ in points]).tobytes(),
        values=array("d", [v for _, _, v in points]).tobytes(),
        quality=bytes([quality] * len(points)),
    )


@pytest.fixture
async def stopped(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> World:
    """Rules, not yet running, with a log that nobody has read."""
    settings = Settings(
        database_url=database_urls.rw("rules"),
        engine_database_url=database_urls.engine("rules"),
    )
    return World(bus, database_urls, settings, keys, principal_headers)


@pytest.fixture
async def world(stopped: World) -> AsyncIterator[World]:
    """Rules, running."""
    async with stopped.running():
        yield stopped
