"""The process that reads a PLC is killed, and another takes over: all that the PLC has is stored, once."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import UUID, uuid4

import pytest
import uvloop

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.plc import Plc
from tests.service.ingest.conftest import World, running
from tests.waiting import until

pytestmark = pytest.mark.timeout(180)

EVERY_S = 0.02
LEASE = timedelta(seconds=1)


def read_plcs(settings: dict[str, Any], bus_url: str) -> None:
    """Be a process of ingest that runs connectors, until killed."""

    async def run() -> None:
        bus = LocalBus(bus_url, SystemClock())
        app = build(Settings(**settings), bus, SystemClock())
        async with app.router.lifespan_context(app):
            await bus.start()
            await asyncio.Event().wait()

    uvloop.run(run())


@pytest.fixture
def started(settings: Settings, database_urls: DatabaseUrls) -> Iterator[Callable[[], BaseProcess]]:
    """Start such a process."""
    own = settings.model_copy(update={"writer": False, "connector_lease": LEASE})
    plain = own.model_dump(exclude={"database_url", "engine_database_url"}) | {
        "database_url": own.database_url.get_secret_value(),
        "engine_database_url": own.engine_database_url.get_secret_value(),
    }
    # Loads what a process of ingest needs once, for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ExitStack() as stack:

        def start() -> BaseProcess:
            child = context.Process(target=read_plcs, args=(plain, database_urls.bus), daemon=True)
            child.start()
            stack.callback(child.kill)
            return child

        yield start


@pytest.fixture
async def world(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    no_connectors_left: None,
) -> AsyncIterator[World]:
    """An ingest that stores, and runs no connectors itself."""
    app = build(settings.model_copy(update={"connectors": 0}), bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, bus, database_urls, tenant_id, headers) as world:
        yield world


@asynccontextmanager
async def changing(plc: Plc) -> AsyncIterator[list[float]]:
    """Let the temperature change all the time; gives what it has been."""
    been: list[float] = []

    async def change() -> None:
        while True:
            been.append(float(1_000 + len(been)))
            await plc.set("Temp", been[-1])
            await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(change())
    try:
        yield been
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_the_plc_has_is_stored_once_whoever_is_killed(
    world: World, started: Callable[[], BaseProcess]
) -> None:
    device_id, _ = await world.device()
    plc = Plc()
    await plc.start(history=("Temp",))

    async def stores(more: int) -> None:
        wanted = len(await world.stored(device_id)) + more

        async def enough() -> bool:
            return len(await world.stored(device_id)) >= wanted

        # A process has to start for it.
        await until(enough, f"{more} more are stored", within_s=60)

    try:
        async with changing(plc) as been:
            running_it = await asyncio.to_thread(started)
            await connected(world, plc, device_id)
            promised_from = len(been)
            await stores(10)
            for _ in range(2):
                next_one = await asyncio.to_thread(started)
                known = len(plc.subscriptions())
                running_it.kill()
                running_it.join()
                # The PLC keeps those of who is dead for a minute.
                await until(lambda known=known: len(plc.subscriptions()) > known, "taken over")  # type: ignore[misc]  # bound at once
                await stores(20)
                running_it = next_one

        async def all_there() -> bool:
            stored = {value for _, _, value in await world.stored(device_id)}
            return set(been[promised_from:]) <= stored

        await until(all_there, "all that the PLC had been is stored", within_s=30)
        values = [value for _, _, value in await world.stored(device_id)]
        assert len(values) == len(set(values)), "each of them once"
    finally:
        await plc.stop()


async def connected(world: World, plc: Plc, device_id: UUID) -> None:
    """Have the PLC read."""
    answer = await world.http.post(
        "/api/v1/connectors",
        json={
            "name": "plc",
            "kind": "opcua",
            "settings": {
                "endpoint": plc.url,
                "security": "none",
                "allow_insecure": True,
                "publishing_ms": 20,
                "history": True,
                "history_overlap_s": 1,
                "items": [{"device": str(device_id), "metric": "temp", "node_id": "ns=2;s=Temp"}],
            },
        },
        headers=world.headers,
    )
    assert answer.status_code == 201, answer.text
