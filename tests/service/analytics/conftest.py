"""Analytics as one process on real PostgreSQL, with a past to look at."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.analytics.app import build
from services.analytics.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.history import Past

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 6, 1, 13, tzinfo=UTC)


@dataclass(slots=True)
class World:
    """A running analytics, a tenant, and the historian behind it."""

    http: httpx2.AsyncClient
    past: Past
    tenant_id: UUID
    headers: dict[str, str]

    async def ask(
        self, what: str, device_id: UUID, metric: str = "temp", **query: Any
    ) -> httpx2.Response:
        """Ask for `timeseries` or `statistics`; from noon to 13:00 unless the query says more."""
        asked = {"from": NOON, "to": LATER, **query}
        params = {
            k: v.isoformat() if isinstance(v, datetime) else v
            for k, v in asked.items()
            if v is not None
        }
        return await self.http.get(
            f"/api/v1/analytics/{what}/{device_id}/{metric}", params=params, headers=self.headers
        )

    async def answer(self, what: str, device_id: UUID, **query: Any) -> dict[str, Any]:
        """Ask, and return the answer's body."""
        answer = await self.ask(what, device_id, **query)
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body


@pytest.fixture
async def world(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """A running analytics."""
    settings = Settings(
        database_url=database_urls.rw("analytics"),
        engine_database_url=database_urls.engine("analytics"),
        statistics_points=5_000,
    )
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://analytics") as http,
    ):
        yield World(http, Past(database_urls), tenant_id, principal_headers(tenant_id))
