"""The two worlds in which each story about the bus is told."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from alembic.config import Config

from libs.common.bus import local
from libs.common.db.roles import ensure_roles
from libs.common.migrate import ROOT
from tests.contract.bus.world import LocalWorld, RabbitWorld, World
from tests.servers import SharedServer


@pytest.fixture(scope="session")
def bus_database_url(postgres_server: SharedServer) -> Iterator[str]:
    """A database with the edge's log in it, for all stories of this process."""
    name = f"bus_contract_{uuid4().hex[:10]}"
    url = postgres_server.url_of(name)
    asyncio.run(_create(postgres_server.url, name, url))
    for section in ("platform", "bus"):
        config = Config(str(ROOT / "alembic.ini"), ini_section=section)
        config.attributes["url"] = url
        command.upgrade(config, "head")
    yield url
    asyncio.run(_drop(postgres_server.url, name))


@pytest.fixture
async def rabbit_world(
    rabbitmq_server: SharedServer, bus_database_url: str
) -> AsyncIterator[RabbitWorld]:
    """A world on RabbitMQ, with a service that has an outbox."""
    world = RabbitWorld(rabbitmq_server.url, bus_database_url)
    await world.create_outbox()
    yield world
    await world.close()


@pytest.fixture(params=["rabbit", "local"])
async def bus_world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, bus_database_url: str
) -> AsyncIterator[World]:
    """Each story is told once on each bus."""
    if request.param == "rabbit":
        server: SharedServer = request.getfixturevalue("rabbitmq_server")
        rabbit = RabbitWorld(server.url, bus_database_url)
        await rabbit.create_outbox()
        world: World = rabbit
    else:
        monkeypatch.setattr(local, "STOP_S", 0.5)
        world = LocalWorld(bus_database_url)
    yield world
    await world.close()


async def _create(admin_url: str, name: str, url: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    await ensure_roles(url, {})


async def _drop(admin_url: str, name: str) -> None:
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()
