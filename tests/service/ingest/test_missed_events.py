"""What a replica did not hear while its way to the bus was interrupted, it finds out when it is back."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, cast
from uuid import UUID, uuid4

import aiomqtt
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus, Handle, Subscription
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from services.ingest import handlers
from services.ingest.app import build
from services.ingest.domain.device import Source
from services.ingest.handlers import listen_for_profiles
from services.ingest.settings import Settings
from services.ingest.usecases.profiles import ProfilesInUse
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.service.ingest.test_devices_over_mqtt import connect
from tests.waiting import until


class Forgetful(LocalBus):
    """A bus whose link to this replica is broken: what is said to each replica never arrives."""

    async def start(self) -> None:
        self.deaf = [each.subscription for each in self._subscribers if not each.durable]
        self._subscribers = [each for each in self._subscribers if each.durable]
        await super().start()

    def come_back(self) -> None:
        """Say that the link is there again."""
        for subscription in self.deaf:
            if subscription.on_gap is not None:
                subscription.on_gap()


@pytest.fixture
def forgetful(database_urls: DatabaseUrls) -> Forgetful:
    return Forgetful(database_urls.bus, SystemClock())


@pytest.fixture
async def deaf(
    settings: Settings,
    forgetful: Forgetful,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> AsyncIterator[World]:
    """An ingest that does not hear what is said to each replica."""
    app = build(settings, forgetful, SystemClock(), keys=keys)
    tenant_id = uuid4()
    headers = principal_headers(tenant_id)
    async with running(app, forgetful, database_urls, tenant_id, headers) as world:
        yield world


async def change(world: World, method: str, path: str, **body: Any) -> dict[str, Any]:
    answer = await world.http.request(
        method, f"/api/v1/{path}", headers=world.headers, json=body or None
    )
    assert answer.is_success, answer.text
    return cast(dict[str, Any], answer.json()) if answer.content else {}


async def is_cut(client: aiomqtt.Client) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(aiomqtt.MqttError):
            async for _ in client.messages:
                pass


async def test_a_device_has_the_profile_that_it_was_given_meanwhile(
    deaf: World, forgetful: Forgetful
) -> None:
    given, changed, taken = [await deaf.device() for _ in range(3)]
    press = (await change(deaf, "POST", "device-profiles", name="press"))["id"]
    pump = (await change(deaf, "POST", "device-profiles", name="pump"))["id"]
    for device_id, _ in (changed, taken):
        await change(deaf, "PATCH", f"devices/{device_id}", profile_id=pump)
    sources: list[Source] = [
        await deaf.app.state.sources.login(token) for _, token in (given, changed, taken)
    ]
    await change(deaf, "PATCH", f"devices/{given[0]}", profile_id=press)
    await change(deaf, "PATCH", f"device-profiles/{pump}", metrics={"temp": {"unit": "degC"}})
    await change(deaf, "PATCH", f"devices/{taken[0]}", profile_id=None)
    forgetful.come_back()

    def known() -> list[tuple[UUID, int] | None]:
        return [
            None if each.profile is None else (each.profile.id, each.profile.version)
            for each in sources
        ]

    await until(
        lambda: known() == [(UUID(press), 1), (UUID(pump), 2), None], "all are as they are now"
    )


async def test_a_gateway_that_was_dismissed_meanwhile_is_cut_off(
    deaf: World, forgetful: Forgetful
) -> None:
    gateway_id, token = await deaf.device()
    await change(deaf, "PUT", f"devices/{gateway_id}/gateway", registers="meter")
    async with aiomqtt.Client("127.0.0.1", deaf.mqtt_port, username=token, password="") as client:
        await client.publish("v1/gateway/connect", '{"device": "A"}', qos=1)
        await change(deaf, "DELETE", f"devices/{gateway_id}/gateway")
        forgetful.come_back()
        with suppress(aiomqtt.MqttError):
            await is_cut(client)
    connected = deaf.app.state.endpoint.by_device
    await until(lambda: gateway_id not in connected, "it is cut off")


async def test_a_device_is_told_the_attributes_that_were_set_meanwhile(
    deaf: World, forgetful: Forgetful
) -> None:
    device_id, token = await deaf.device()
    topic = f"v1/devices/{device_id}/attributes"
    async with connect(deaf, device_id, token) as client:
        await client.subscribe(topic)
        await change(deaf, "PATCH", f"devices/{device_id}/attributes/shared", limit=70)
        forgetful.come_back()
        async with asyncio.timeout(20):
            message = await anext(aiter(client.messages))
        assert isinstance(message.payload, bytes)
        assert (str(message.topic), json.loads(message.payload)) == (topic, {"limit": 70})


async def test_a_device_that_connected_elsewhere_meanwhile_is_cut_off_and_no_other(
    deaf: World, forgetful: Forgetful, world: World
) -> None:
    moved, moved_token = await deaf.device()
    stays, stays_token = await deaf.device()

    async def is_noted(device_id: UUID, times: int) -> None:
        async def does() -> bool:
            [row] = await deaf.query(
                "SELECT count(*) FROM bus.log WHERE type LIKE 'devices.taken_over%'"
                " AND tenant_id = $1",
                deaf.tenant_id,
            )
            [device] = await deaf.query(
                "SELECT endpoint_id FROM ingest.devices WHERE id = $1", device_id
            )
            return row["count"] == times and device["endpoint_id"] is not None

        await until(does, "the connection is noted")

    async with connect(deaf, stays, stays_token), connect(deaf, moved, moved_token) as old:
        await is_noted(stays, 0)
        await is_noted(moved, 0)
        async with connect(world, moved, moved_token):
            await is_noted(moved, 1)
            connected = deaf.app.state.endpoint.by_device
            assert connected.keys() == {stays, moved}
            forgetful.come_back()
            with suppress(aiomqtt.MqttError):
                await is_cut(old)
            await until(lambda: connected.keys() == {stays}, "it is cut off")
            assert moved in world.app.state.endpoint.by_device


class Captured:
    """A bus that brings nothing."""

    def subscribe(self, subscription: Subscription, handle: Handle) -> None:
        self.subscription = subscription


class Away(ProfilesInUse):
    """Profiles in a database that is away at first."""

    def __init__(self) -> None:
        self.looks = 0

    async def read_again(self) -> None:
        self.looks += 1
        if self.looks < 3:
            raise ConnectionRefusedError


async def test_what_was_missed_is_looked_for_until_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "FIRST_PAUSE_S", 0.001)
    bus, profiles = Captured(), Away()
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    listen_for_profiles(cast(Bus, bus), profiles, spawn)
    assert bus.subscription.on_gap is not None
    bus.subscription.on_gap()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert profiles.looks == 3
