"""Retention as one process: real PostgreSQL, the local bus, points that have grown old."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.retention import DataErased
from services.retention.app import build
from services.retention.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.history import Past, SeriesOfTest


@dataclass(slots=True)
class World:
    """A running retention, a tenant, and the historian behind it."""

    app: FastAPI
    http: httpx2.AsyncClient
    past: Past
    bus: LocalBus
    principal_headers: PrincipalHeaders
    tenant_id: UUID

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        tenant_id: UUID | None = None,
        platform_admin: bool = False,
        if_match: str | None = None,
    ) -> httpx2.Response:
        """Call the API as someone of the tenant who may do all."""
        headers = self.principal_headers(tenant_id or self.tenant_id, platform_admin=platform_admin)
        if if_match is not None:
            headers["if-match"] = if_match
        return await self.http.request(
            method, f"/api/v1/retention{path}", json=body, headers=headers
        )

    async def keep(self, keep: int | str, *, tenant_id: UUID | None = None) -> dict[str, Any]:
        """Make a policy for the tenant's telemetry."""
        body = {"data_type": "telemetry", "keep": keep}
        answer = await self.call("POST", "/policies", body, tenant_id=tenant_id)
        assert answer.status_code == 201, answer.text
        policy: dict[str, Any] = answer.json()
        return policy

    async def run(self, *, dry_run: bool, platform_admin: bool = False) -> dict[str, Any]:
        """Erase, or ask what would be."""
        answer = await self.call(
            "POST", "/run", {"dry_run": dry_run}, platform_admin=platform_admin
        )
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def told(self, tenant_id: UUID | None = None) -> list[DataErased]:
        """Return what was said to the tenant, in order."""
        rows = await self.past.query(
            "SELECT body FROM bus.log WHERE type = $1 AND tenant_id = $2 ORDER BY position",
            DataErased.type,
            tenant_id or self.tenant_id,
        )
        return [msgspec.json.decode(row["body"], type=DataErased) for row in rows]

    async def aged(self, *days: float, tenant_id: UUID | None = None) -> SeriesOfTest:
        """Return a series with one point for each age."""
        series = await self.past.series(tenant_id or self.tenant_id)
        await series.put([(ago(age), 1.0, 0) for age in days])
        return series


def ago(days: float) -> datetime:
    """Return the noon (UTC) that many days ago; a fraction moves it."""
    noon = SystemClock().now().replace(hour=12, minute=0, second=0, microsecond=0)
    return noon - timedelta(days=days)


@pytest.fixture
async def world(
    database_urls: DatabaseUrls,
    bus: LocalBus,
    keys: KeySource,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """A running retention that erases only when it is told to."""
    settings = Settings(
        database_url=database_urls.rw("retention"),
        engine_database_url=database_urls.engine("retention"),
        erases_daily=False,
        batch_rows=10,
        request_rows=100,
    )
    app = build(settings, bus, SystemClock(), keys=keys)
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://retention") as http,
    ):
        await bus.start()
        yield World(app, http, Past(database_urls), bus, principal_headers, uuid4())
        await bus.stop()
