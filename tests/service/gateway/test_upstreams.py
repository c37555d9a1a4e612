"""Services that come, go, die and take turns; and a gateway that ends."""

import asyncio
import json
from pathlib import Path

import aiohttp
import httpx2
import pytest

from deploy.local.processes import free_port
from libs.common.bus.local import LocalBus
from libs.common.http.bounds import Bounds
from libs.common.http.server import Server, ServerConfig
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import Asked, StubService, running, serving
from tests.waiting import until


def described(name: str) -> dict[str, object]:
    """Return the description of a service with one operation."""
    operation = {"operationId": name, "responses": {"200": {"description": "it is so"}}}
    return {"paths": {f"/api/v1/{name}": {"get": operation}}, "components": {}}


async def test_services_come_and_go_by_a_file_and_addresses_take_turns(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    file = tmp_path / "upstreams.json"
    file.write_text("{}")
    here = settings.model_copy(update={"upstreams_file": file})
    async with running(here, bus, database_urls, in_process=False) as world:
        headers = await world.headers(world.person())

        async def ask(path: str = "/api/v1/rules") -> httpx2.Response:
            return await world.http.get(path, headers=headers)

        async def paths() -> set[str]:
            return {*(await world.http.get("/api/v1/openapi.json")).json()["paths"]}

        gone = await ask()
        assert gone.status_code == 503
        assert "rules" in gone.json()["detail"]
        assert "/api/v1/rules" not in await paths()

        first, second = StubService(openapi=described("rules")), StubService()
        first.asked, second.asked = list[Asked](), list[Asked]()
        dead = f"http://127.0.0.1:{free_port()}"
        async with serving(first) as one, serving(second) as two:
            urls = [f"http://127.0.0.1:{one}", f"http://127.0.0.1:{two}", dead]
            file.write_text(json.dumps({"rules": urls}))

            async def is_there() -> bool:
                return (await ask()).status_code == 200

            await until(is_there, "the service has joined", within_s=5)
            assert "/api/v1/rules" in await paths()
            # Nobody notices the dead one: what reads is asked of the next.
            statuses = {(await ask()).status_code for _ in range(12)}
            assert statuses == {200}
            assert first.asked
            assert second.asked
            file.write_text("no JSON")
            assert (await ask()).status_code == 200
            file.write_text("{}")

            async def is_gone() -> bool:
                return (await ask()).status_code == 503

            await until(is_gone, "the service has left", within_s=5)
            assert "/api/v1/rules" not in await paths()


async def test_a_service_that_is_killed_is_named_and_not_asked_for_a_while(
    settings: Settings,
    bus: LocalBus,
    database_urls: DatabaseUrls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, port = StubService(), free_port()
    there = settings.model_copy(update={"upstreams": {"rules": f"http://127.0.0.1:{port}"}})
    async with running(there, bus, database_urls, in_process=False) as world:
        headers = await world.headers(world.person())

        async def ask() -> httpx2.Response:
            return await world.http.get("/api/v1/rules", headers=headers)

        async with serving(service, port):
            assert (await ask()).status_code == 200
        answers = [await ask() for _ in range(4)]
        assert {answer.status_code for answer in answers} == {503}
        assert "the service rules is away" in answers[-1].json()["detail"]
        assert int(answers[-1].headers["retry-after"]) >= 1
        tried = 0
        request = aiohttp.ClientSession.request

        def counted(*given: object, **more: object) -> object:
            nonlocal tried
            tried += 1
            return request(*given, **more)  # type: ignore[arg-type]  # as it came

        monkeypatch.setattr(aiohttp.ClientSession, "request", counted)
        assert (await ask()).status_code == 503
        assert tried == 0
        async with serving(service, port):

            async def is_back() -> bool:
                return (await ask()).status_code == 200

            await until(is_back, "it is asked again", within_s=10)


async def test_a_gateway_that_ends_under_load_breaks_no_request(
    settings: Settings, bus: LocalBus, database_urls: DatabaseUrls
) -> None:
    async with running(settings, bus, database_urls) as world:
        headers = await world.headers(world.person())
        health = world.app.health  # type: ignore[attr-defined]  # a ServiceApp
        config = ServerConfig(world.app, Bounds(), lifespan="off", drain_s=10)
        server = Server(config, notice_s=0.5, on_drain=health.drain)
        serves = asyncio.create_task(server.serve())
        await until(lambda: server.started, "it listens")
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        statuses: list[int] = []
        told_to_close = 0
        sent_elsewhere = asyncio.Event()

        async def work() -> None:
            nonlocal told_to_close
            async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:
                while not sent_elsewhere.is_set():
                    answer = await http.get("/api/v1/rules", headers=headers)
                    statuses.append(answer.status_code)
                    told_to_close += answer.headers.get("connection") == "close"

        async def balance() -> None:
            """Look whether it is ready, as a balancer does, and send nobody there any more."""
            async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:

                async def is_ending() -> bool:
                    return (await http.get("/health/ready")).status_code == 503

                await until(is_ending, "it says that it is not ready")
                sent_elsewhere.set()

        async with httpx2.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:
            world.service.gate = asyncio.Event()
            slow = asyncio.create_task(http.get("/api/v1/devices", headers=headers))
            await until(lambda: bool(world.service.asked), "the slow one is under way")
            workers = [asyncio.create_task(work()) for _ in range(6)]
            balancer = asyncio.create_task(balance())
            await until(lambda: len(statuses) > 50, "there is load")
            server.should_exit = True
            await asyncio.gather(balancer, *workers)
            assert not slow.done()
            world.service.gate.set()
            assert (await slow).status_code == 200
        await serves
        assert {*statuses} == {200}
        assert told_to_close
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient(base_url=base, trust_env=False) as http:
                await http.get("/health/live")
