"""Two gateways before the same plant."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.gateway.app import build
from services.gateway.settings import Settings
from tests.database import DatabaseUrls
from tests.service.gateway.conftest import World, bearer, serving
from tests.waiting import until


class Deaf(LocalBus):
    """A bus over which nothing arrives."""

    async def start(self) -> None:
        self._subscribers.clear()
        await super().start()


@pytest.fixture(params=[LocalBus, Deaf])
async def other(
    request: pytest.FixtureRequest, world: World, settings: Settings, database_urls: DatabaseUrls
) -> AsyncIterator[httpx2.AsyncClient]:
    """A second replica; once with a bus that brings it nothing."""
    bus = request.param(database_urls.bus, SystemClock())
    app = build(settings, bus, world.clock, upstreams={"tenancy": world.tenancy})
    async with app.router.lifespan_context(app):
        await bus.start()
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://other") as http:
            yield http
        await bus.stop()


async def test_a_token_of_one_replica_is_good_at_the_other_until_the_logout(
    world: World, other: httpx2.AsyncClient
) -> None:
    headers = bearer((await world.log_in(world.person()))["access_token"])
    assert (await other.get("/api/v1/auth/me", headers=headers)).status_code == 200
    await world.http.post("/api/v1/auth/logout", headers=headers)

    async def is_out() -> bool:
        return (await other.get("/api/v1/auth/me", headers=headers)).status_code == 401

    await until(is_out, "the other replica knows of the logout", within_s=5)


async def test_a_replica_that_starts_knows_who_was_logged_out_before(
    world: World, settings: Settings, database_urls: DatabaseUrls
) -> None:
    headers = bearer((await world.log_in(world.person()))["access_token"])
    await world.http.post("/api/v1/auth/logout", headers=headers)
    app = build(
        settings,
        LocalBus(database_urls.bus, SystemClock()),
        world.clock,
        upstreams={"tenancy": world.tenancy},
    )
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://new") as http,
    ):
        assert (await http.get("/api/v1/auth/me", headers=headers)).status_code == 401


async def test_two_that_start_at_once_share_one_key(
    world: World, settings: Settings, other: httpx2.AsyncClient
) -> None:
    ours = (await world.http.get("/.well-known/jwks.json")).json()
    assert (await other.get("/.well-known/jwks.json")).json() == ours
    assert len(ours["keys"]) == 1


class Forgetful(LocalBus):
    """A bus whose link broke: nothing arrives, and what was said meanwhile is gone."""

    async def start(self) -> None:
        self.gaps = [s.subscription.on_gap for s in self._subscribers]
        self._subscribers.clear()
        await super().start()

    def come_back(self) -> None:
        """Say that the link is there again."""
        for on_gap in self.gaps:
            if on_gap is not None:
                on_gap()


async def test_what_was_missed_while_the_bus_was_away_takes_effect_when_it_is_back(
    world: World, settings: Settings, database_urls: DatabaseUrls
) -> None:
    ann = world.person()
    headers = await world.headers(ann)
    bus = Forgetful(database_urls.bus, SystemClock())
    app = build(settings, bus, world.clock, upstreams={"tenancy": world.tenancy})
    async with app.router.lifespan_context(app):
        await bus.start()
        async with (
            serving(app) as port,
            httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
            connect(
                f"ws://127.0.0.1:{port}/api/v1/ws", proxy=None, additional_headers=headers
            ) as socket,
        ):
            await socket.send('{"subscribe": {}}')
            assert json.loads(await socket.recv())["type"] == "subscribed"
            ann.memberships.clear()
            # Nobody told this replica, so for now it believes what it knows.
            assert (await http.get("/api/v1/auth/me", headers=headers)).status_code == 200
            bus.come_back()
            assert (await http.get("/api/v1/auth/me", headers=headers)).status_code == 401
            with pytest.raises(ConnectionClosed) as closed:
                async with asyncio.timeout(10):
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
        await bus.stop()
