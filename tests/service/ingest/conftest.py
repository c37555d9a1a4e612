"""Ingest as one process: real PostgreSQL, the local bus, real sockets for devices."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.http.bounds import Bounds
from libs.common.http.server import ServerConfig
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.waiting import until

_STORED = """
    SELECT s.metric, p.ts, p.value FROM historian.series s
    JOIN historian.points p ON p.tenant = s.tenant AND p.series = s.id
    WHERE s.device_id = $1 ORDER BY p.ts
"""


@dataclass(slots=True)
class World:
    """A running ingest, a tenant, and what it takes to look behind it."""

    app: FastAPI
    http: httpx2.AsyncClient
    urls: DatabaseUrls
    tenant_id: UUID
    headers: dict[str, str]

    @property
    def mqtt_port(self) -> int:
        """Where devices connect."""
        port: int = self.app.state.mqtt_port
        return port

    async def device(self, name: str | None = None) -> tuple[UUID, str]:
        """Register a device; return its id and token."""
        answer = await self.http.post(
            "/api/v1/devices",
            json={"name": name or f"pump {uuid4()}", "type": "pump"},
            headers=self.headers,
        )
        assert answer.status_code == 201, answer.text
        body = answer.json()
        return UUID(body["id"]), body["credentials"]["token"]

    async def stored(self, device_id: UUID) -> list[tuple[str, float, float]]:
        """Return (metric, epoch seconds, value) of all the device's points, by time."""
        return [
            (row["metric"], row["ts"].timestamp(), row["value"])
            for row in await self.query(_STORED, device_id)
        ]

    async def until_stored(self, device_id: UUID, count: int) -> list[tuple[str, float, float]]:
        """Wait for so many points of the device, and return them."""
        # One connection for all looks: to connect takes longer than to look.
        admin = await asyncpg.connect(self.urls.admin)

        async def enough() -> bool:
            return len(await admin.fetch(_STORED, device_id)) >= count

        try:
            await until(enough, f"{count} points of {device_id} stored")
        except AssertionError as late:
            what = "reason, detail, received_at"
            refused = await self.query(
                f"SELECT {what} FROM ingest.quarantine WHERE device_id = $1", device_id
            )
            counted = await self.query(
                "SELECT * FROM ingest.ledger WHERE device_id = $1", device_id
            )
            raise AssertionError(
                f"{late}; stored: {await self.stored(device_id)}; refused: {refused};"
                f" counted: {counted}"
            ) from None
        finally:
            await admin.close()
        return await self.stored(device_id)

    async def query(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the database as its admin."""
        connection = await asyncpg.connect(self.urls.admin)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def as_service(
        self, tenant_id: UUID, sql: str, *arguments: object
    ) -> list[asyncpg.Record]:
        """Ask the database as ingest does, in a transaction of a tenant."""
        connection = await asyncpg.connect(self.urls.rw("ingest"))
        try:
            async with connection.transaction():
                await connection.execute(
                    "SELECT set_config('app.tenant_ids', $1, true)", f"{{{tenant_id}}}"
                )
                return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()


@pytest.fixture
def settings(database_urls: DatabaseUrls) -> Settings:
    """Ingest's settings for a test: any free port."""
    return Settings(
        database_url=database_urls.rw("ingest"),
        engine_database_url=database_urls.engine("ingest"),
        historian_writer_url=database_urls.writer,
        credentials_key="only-for-tests-and-long-enough",
        connector_addresses=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        mqtt_host="127.0.0.1",
        mqtt_port=0,
    )


@asynccontextmanager
async def running(
    app: FastAPI, bus: LocalBus, urls: DatabaseUrls, tenant_id: UUID, headers: dict[str, str]
) -> AsyncIterator[World]:
    """Let an app live, and its bus deliver."""
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://ingest") as http:
            yield World(app, http, urls, tenant_id, headers)
        await bus.stop()


@asynccontextmanager
async def serving(app: FastAPI, port: int = 0) -> AsyncIterator[int]:
    """Serve an app that lives already; gives the port, any free one unless it is named."""
    server = uvicorn.Server(ServerConfig(app, Bounds(), lifespan="off", port=port, drain_s=1))
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started, "ingest serves HTTP")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def world(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """A running ingest."""
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        yield world


@pytest.fixture
async def no_connectors_left(database_urls: DatabaseUrls) -> AsyncIterator[None]:
    """Remove all connectors afterwards: whichever process comes next would run them."""
    yield
    connection = await asyncpg.connect(database_urls.admin)
    try:
        await connection.execute("DELETE FROM ingest.connectors")
    finally:
        await connection.close()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that serves: its transports are not asyncio's own."""
    return {"uvloop": uvloop.new_event_loop}
