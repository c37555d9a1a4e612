"""Devices whose tenant is suspended or gone; and those of whom the word was lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import aiomqtt
import asyncpg
import httpx2
import pytest
from aiomqtt.exceptions import MqttConnectError

from libs.common.auth.guesses import REFUSED_S
from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.errors import NotFound, Unauthenticated
from libs.common.events.base import Event, to_message
from libs.common.events.tenancy import TenantDeleted, TenantUpdated
from services.ingest.app import build
from services.ingest.settings import Settings
from services.ingest.store.tenants import forget_deleted
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.service.ingest.test_devices_over_mqtt import connect
from tests.waiting import until


def said(
    world: World,
    status: Literal["active", "suspended"],
    at: datetime | None = None,
    tenant_id: UUID | None = None,
) -> TenantUpdated:
    return TenantUpdated(
        tenant_id=tenant_id or world.tenant_id,
        at=at or datetime.now(UTC),
        slug="plant",
        name="plant",
        status=status,
    )


def deleted(world: World) -> TenantDeleted:
    return TenantDeleted(tenant_id=world.tenant_id, at=datetime.now(UTC), slug="plant")


async def hear(world: World, bus: LocalBus, *events: Event) -> None:
    """Say events, and wait until ingest has handled them."""
    await bus.publish([to_message(event) for event in events])

    async def all_handled() -> bool:
        [row] = await world.query(
            "SELECT count(*) FROM ingest.inbox WHERE subscription = 'ingest.events'"
            " AND event_id = ANY($1)",
            list({event.id for event in events}),
        )
        return bool(row["count"] == len({event.id for event in events}))

    await until(all_handled, "the events are handled")


async def gets_in(world: World, device_id: UUID, token: str) -> bool:
    try:
        async with connect(world, device_id, token):
            return True
    except MqttConnectError:
        return False


async def sends(world: World, token: str) -> int:
    """Send a point over HTTP as the device; return the status."""
    answer = await world.http.post(
        "/api/v1/telemetry",
        json={"values": {"temp": 1}},
        headers={"authorization": f"Bearer {token}"},
    )
    return answer.status_code


async def is_cut(world: World, device_id: UUID, *, within_s: float = 5) -> None:
    connected = world.app.state.endpoint.by_device
    await until(lambda: device_id not in connected, "cut off", within_s=within_s)


async def test_a_suspended_tenants_devices_are_cut_in_five_seconds_and_come_back_when_it_is_active(
    world: World, bus: LocalBus
) -> None:
    connected, by_mqtt = await world.device()
    _, by_http = await world.device()
    assert await sends(world, by_http) == 202
    async with connect(world, connected, by_mqtt) as client:
        await bus.publish([to_message(said(world, "suspended"))])
        await is_cut(world, connected)
        with pytest.raises(aiomqtt.MqttError):
            async for _ in client.messages:
                pass
    assert not await gets_in(world, connected, by_mqtt)
    assert await sends(world, by_http) == 401

    async def is_offline() -> bool:
        path = f"/api/v1/devices/{connected}"
        return bool(
            (await world.http.get(path, headers=world.headers)).json()["status"] == "offline"
        )

    await until(is_offline, "noted as offline")
    await hear(world, bus, said(world, "active"))

    async def comes_back() -> bool:
        return await gets_in(world, connected, by_mqtt)

    # A token that was refused just now is not looked up again at once.
    await until(comes_back, "the device is let in again", within_s=REFUSED_S + 5)
    assert await sends(world, by_http) == 202


async def test_other_tenants_devices_stay(
    world: World, bus: LocalBus, principal_headers: PrincipalHeaders
) -> None:
    device_id, token = await world.device()
    other = UUID(int=world.tenant_id.int ^ 1)
    async with connect(world, device_id, token):
        await hear(world, bus, said(world, "suspended", tenant_id=other))
        await hear(world, bus, said(world, "active"))  # a rename, say
        assert device_id in world.app.state.endpoint.by_device


async def test_nobody_sends_in_the_name_of_a_suspended_tenants_device(
    world: World, bus: LocalBus
) -> None:
    device_id, _ = await world.device()
    body = {"device_id": str(device_id), "values": {"temp": 1}}
    path = "/api/v1/telemetry"
    assert (await world.http.post(path, json=body, headers=world.headers)).status_code == 202
    # A bridge holds on to what it was given, until it is told.
    told: list[UUID] = []
    sources = world.app.state.sources
    sources.on_revoked.append(lambda device, _: told.append(device))
    held = await sources.of_tenant(world.tenant_id, device_id)

    await hear(world, bus, said(world, "suspended"))
    await until(lambda: told == [device_id], "who holds the device is told")
    assert held.is_revoked
    assert (await world.http.post(path, json=body, headers=world.headers)).status_code == 404
    with pytest.raises(NotFound):
        await sources.of_tenant(world.tenant_id, device_id)
    await hear(world, bus, said(world, "active"))
    assert (await world.http.post(path, json=body, headers=world.headers)).status_code == 202


async def test_a_device_that_gets_in_before_the_suspension_is_noted_does_not_stay(
    world: World, bus: LocalBus
) -> None:
    device_id, token = await world.device()
    admin = await asyncpg.connect(world.urls.admin)
    try:
        transaction = admin.transaction()
        await transaction.start()
        # Whoever notes the suspension waits for this row.
        await admin.execute(
            "INSERT INTO ingest.tenants VALUES ($1, 'active', now() - interval '1 hour')",
            world.tenant_id,
        )
        await bus.publish([to_message(said(world, "suspended"))])

        async def waits() -> bool:
            rows = await world.query(
                "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database() AND query LIKE 'INSERT INTO ingest.tenants%'"
            )
            return bool(rows)

        await until(waits, "the suspension is heard, and not noted yet")
        async with connect(world, device_id, token):
            assert device_id in world.app.state.endpoint.by_device
            await transaction.commit()
            await is_cut(world, device_id)
    finally:
        await admin.close()
    assert not await gets_in(world, device_id, token)


async def test_a_word_that_was_overtaken_closes_and_opens_nothing(
    world: World, bus: LocalBus
) -> None:
    device_id, token = await world.device()
    now = datetime.now(UTC)
    suspended = said(world, "suspended", now)
    active = said(world, "active", now + timedelta(seconds=1))
    await hear(world, bus, active, suspended)
    assert await gets_in(world, device_id, token)
    again = said(world, "suspended", now + timedelta(seconds=2))
    await hear(world, bus, again, again)
    assert not await gets_in(world, device_id, token)
    await hear(world, bus, active)
    assert not await gets_in(world, device_id, token)


async def test_after_a_tenants_end_nothing_of_its_devices_is_kept_and_none_gets_in(
    world: World, bus: LocalBus
) -> None:
    device_id, token = await world.device()
    async with connect(world, device_id, token) as client:
        await client.publish(f"v1/devices/{device_id}/telemetry", b"\xff", qos=1)

        async def is_quarantined() -> bool:
            rows = await world.query(
                "SELECT FROM ingest.quarantine WHERE tenant_id = $1", world.tenant_id
            )
            return bool(rows)

        await until(is_quarantined, "something lies in quarantine")
        gone = deleted(world)
        await hear(world, bus, gone, gone)
        await is_cut(world, device_id)
    assert not await gets_in(world, device_id, token)
    for table in ("devices", "credentials", "quarantine"):
        rows = await world.query(
            f"SELECT FROM ingest.{table} WHERE tenant_id = $1", world.tenant_id
        )
        assert not rows, table
    # It was the tenant that went: whoever keeps something of its devices heard that.
    events = await world.query(
        "SELECT type FROM bus.log WHERE tenant_id = $1 AND type LIKE 'device.deleted%'",
        world.tenant_id,
    )
    assert not events

    await hear(world, bus, said(world, "active", datetime.now(UTC) + timedelta(hours=1)))
    # A request that was under way when the tenant went.
    late_id, late_token = await world.device()
    assert not await gets_in(world, late_id, late_token)
    await hear(world, bus, deleted(world))
    assert not await world.query("SELECT FROM ingest.devices WHERE tenant_id = $1", world.tenant_id)


async def test_that_a_tenant_is_gone_is_known_as_long_as_an_event_may_come_again(
    world: World, bus: LocalBus
) -> None:
    async def known() -> int:
        rows = await world.query("SELECT FROM ingest.tenants WHERE tenant_id = $1", world.tenant_id)
        return len(rows)

    engine = Database(world.urls.engine("ingest"), across_tenants=True)
    try:
        await hear(world, bus, said(world, "suspended"))
        await forget_deleted(engine, timedelta())
        assert await known() == 1
        await hear(world, bus, deleted(world))
        await forget_deleted(engine, timedelta(days=7))
        assert await known() == 1
        await forget_deleted(engine, timedelta())
        assert await known() == 0
    finally:
        await engine.close()


async def test_a_process_that_heard_nothing_lets_no_suspended_tenants_device_in(
    world: World, bus: LocalBus, settings: Settings, keys: KeySource
) -> None:
    device_id, token = await world.device()
    await hear(world, bus, said(world, "suspended"))
    # Its bus delivers nothing.
    other = build(settings, LocalBus(world.urls.bus, SystemClock()), SystemClock(), keys=keys)
    async with other.router.lifespan_context(other):
        with pytest.raises(Unauthenticated):
            await other.state.sources.login(token)
        with pytest.raises(NotFound):
            await other.state.sources.of_tenant(world.tenant_id, device_id)


@pytest.fixture
async def vigilant(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
    world: World,
) -> AsyncIterator[World]:
    """A second process that looks often whether devices may go on, and hears no event."""
    deaf = LocalBus(database_urls.bus, SystemClock())
    often = settings.model_copy(update={"verify_every": timedelta(milliseconds=200)})
    app = build(often, deaf, SystemClock(), keys=keys)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        http = await stack.enter_async_context(
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://deaf")
        )
        yield World(app, http, database_urls, world.tenant_id, world.headers)


@pytest.mark.parametrize("what", ["removed", "rotated", "suspended", "deleted"])
async def test_a_device_of_which_the_word_was_lost_is_cut_with_the_next_look(
    world: World, vigilant: World, bus: LocalBus, what: str
) -> None:
    device_id, token = await world.device()
    stays_id, stays = await world.device()
    async with connect(vigilant, device_id, token), connect(vigilant, stays_id, stays):
        looks = count_looks(vigilant)
        await until(lambda: len(looks) >= 2, "it was looked twice")
        connected = vigilant.app.state.endpoint.by_device
        assert {device_id, stays_id} <= connected.keys()
        match what:
            case "removed":
                await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
            case "rotated":
                await world.http.post(
                    f"/api/v1/devices/{device_id}/credentials", headers=world.headers
                )
            case "suspended":
                await hear(world, bus, said(world, "suspended"))
            case "deleted":
                await hear(world, bus, deleted(world))
        await is_cut(vigilant, device_id)
        if what in {"removed", "rotated"}:
            seen = len(looks)
            await until(lambda: len(looks) > seen, "it was looked once more")
            assert stays_id in connected
        # One question a look, for all.
        assert all(asked >= {device_id, stays_id} for asked in looks[:2])


def count_looks(world: World) -> list[set[UUID]]:
    """Return a list that gets the devices asked for with each question."""
    looks: list[set[UUID]] = []
    tokens = world.app.state.sources._tokens
    let_in = tokens.let_in

    async def noting(sources: list[object]) -> set[UUID]:
        looks.append({source.device_id for source in sources})  # type: ignore[attr-defined]  # Sources
        found: set[UUID] = await let_in(sources)
        return found

    tokens.let_in = noting
    return looks


async def test_a_database_that_is_away_cuts_nobody(vigilant: World, world: World) -> None:
    device_id, token = await world.device()
    failed = asyncio.Event()

    async def away(_sources: object) -> set[UUID]:
        failed.set()
        raise ConnectionRefusedError

    async with connect(vigilant, device_id, token):
        tokens = vigilant.app.state.sources._tokens
        tokens.let_in, there = away, tokens.let_in
        await asyncio.wait_for(failed.wait(), 5)
        assert device_id in vigilant.app.state.endpoint.by_device
        tokens.let_in = there
        looks = count_looks(vigilant)
        await until(lambda: len(looks) >= 1, "it is looked again")
        assert device_id in vigilant.app.state.endpoint.by_device


async def test_where_the_devices_of_a_removed_tenant_were_is_forgotten(
    world: World, bus: LocalBus
) -> None:
    site = await world.http.post(
        "/api/v1/device-groups", json={"name": "site"}, headers=world.headers
    )
    device = await world.http.post(
        "/api/v1/devices",
        json={"name": "press", "type": "press", "group_id": site.json()["id"]},
        headers=world.headers,
    )
    assert device.status_code == 201, device.text
    places = "SELECT FROM historian.device_places WHERE tenant_id = $1"
    assert await world.query(places, world.tenant_id)
    # The group goes before its devices, which are then noted to be elsewhere.
    await hear(world, bus, deleted(world))
    assert not await world.query(places, world.tenant_id)
