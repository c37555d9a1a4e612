"""The edge's one process has many pools, and its small database only so many connections."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from deploy.edge.__main__ import POSTGRES_CONFIG
from deploy.edge.platform import Options, running
from deploy.local import servers
from deploy.local.database import PlatformDatabase
from deploy.local.processes import free_port
from libs.common.clock import SystemClock

RESERVE = 15
"""For a superuser, a backup, a migration, somebody who looks."""

pytestmark = pytest.mark.timeout(300)


async def test_all_pools_at_their_largest_leave_some_connections_of_the_edges_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools: list[int] = []
    create_pool = asyncpg.create_pool

    def noted_engine(url: str, **options: Any) -> AsyncEngine:
        pools.append(options["pool_size"] + options["max_overflow"])
        return create_async_engine(url, **options)

    def noted_pool(url: str, **options: Any) -> asyncpg.Pool:
        pools.append(options["max_size"])
        return create_pool(url, **options)

    monkeypatch.setattr("libs.common.db.engine.create_async_engine", noted_engine)
    monkeypatch.setattr(asyncpg, "create_pool", noted_pool)
    server = servers.postgres(tmp_path / "postgres", config=POSTGRES_CONFIG, wheel_first=True)
    await asyncio.to_thread(server.start)
    try:
        database = PlatformDatabase(server, tmp_path / "passwords.json")
        await database.prepare()
        options = Options(
            port=free_port(),
            mqtt_port=free_port(),
            admin_email="admin@localhost.test",
            admin_password="only-for-these-tests",
        )
        async with (
            running(database, SystemClock(), options) as platform,
            httpx2.AsyncClient(base_url=platform.url) as http,
        ):
            assert len(pools) >= 2 * 8 + 2, "two for each service, the bus's and the writer's"
            assert sum(pools) + RESERVE <= int(POSTGRES_CONFIG["max_connections"]), pools
            # And the one port there is tells of the bus that all of them share.
            ready = (await http.get("/health/ready")).json()
            assert ready["checks"]["bus"]["status"] == "ok"
            metrics = (await http.get("/metrics")).text
            for line in (
                'bus_behind_messages{subscription="alerting.events"} ',
                'bus_bytes{table="log"} ',
                'bus_messages_total{outcome="dead",subscription="rules.events"} 0.0',
                "bus_max_bytes 4.294967296e+09",
            ):
                assert line in metrics
    finally:
        await asyncio.to_thread(server.stop)
