"""Who is behind which gateway, when several are given the same device."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.bus.subscriptions import listen
from libs.common.clock import SystemClock
from libs.common.events.ingest import DeviceGatewayChanged
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World, running
from tests.waiting import until


async def gateway(world: World) -> UUID:
    """Register a device that may speak for others."""
    device_id, _ = await world.device()
    path = f"/api/v1/devices/{device_id}/gateway"
    assert (await world.http.put(path, json={}, headers=world.headers)).status_code == 200
    return device_id


async def put_behind(world: World, gateway_id: UUID, **devices: UUID | None) -> Any:
    """Put devices behind a gateway, or take them away."""
    return await world.http.patch(
        f"/api/v1/devices/{gateway_id}/gateway/devices",
        json={name: device and str(device) for name, device in devices.items()},
        headers=world.headers,
    )


async def behind(world: World, gateway_id: UUID) -> Any:
    """Return the devices behind a gateway, by what it calls them."""
    path = f"/api/v1/devices/{gateway_id}/gateway/devices"
    return (await world.http.get(path, headers=world.headers)).json()


async def test_of_two_gateways_that_are_given_a_device_at_once_the_later_has_it(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    told: list[UUID] = []

    async def hear(event: DeviceGatewayChanged) -> None:
        told.append(event.device_id)

    listen(bus, "test.gateways", {DeviceGatewayChanged: hear})
    app = build(settings, bus, SystemClock(), keys=keys)
    tenant_id = uuid4()
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        first, second = await gateway(world), await gateway(world)
        device_id, _ = await world.device()
        connection = await asyncpg.connect(world.urls.admin)
        try:
            # The first gateway's transaction, not committed yet.
            async with connection.transaction():
                await connection.execute(
                    "SELECT FROM ingest.devices WHERE id = $1 FOR NO KEY UPDATE", device_id
                )
                await connection.execute(
                    "INSERT INTO ingest.gateway_devices (tenant_id, device_id, gateway_id, name)"
                    " VALUES ($1, $2, $3, 'press')",
                    world.tenant_id,
                    device_id,
                    first,
                )
                later = asyncio.create_task(put_behind(world, second, drill=device_id))
                own = await connection.fetchval("SELECT pg_backend_pid()")

                async def it_waits() -> bool:
                    query = "SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"
                    return bool(await world.query(query, own))

                await until(it_waits, "the second waits for the first")
        finally:
            await connection.close()
        answer = await later
        assert answer.status_code == 200, answer.text
        assert await behind(world, second) == {"drill": str(device_id)}
        assert await behind(world, first) == {}
        await until(lambda: told[-2:] == [second, first], "both are told, the one that lost it too")


async def test_two_gateways_that_are_given_each_others_devices_at_once_both_are_answered(
    world: World,
) -> None:
    ways = [await gateway(world), await gateway(world)]
    devices = [(await world.device())[0] for _ in range(20)]
    named = {f"d{n}": device_id for n, device_id in enumerate(devices)}
    turned = {f"d{n}": device_id for n, device_id in enumerate(reversed(devices))}
    for _ in range(3):
        answers = await asyncio.gather(
            *(put_behind(world, way, **given) for way in ways for given in (named, turned))
        )
        assert [answer.status_code for answer in answers] == [200] * 4
        found = [await behind(world, way) for way in ways]
        assert sorted(len(one) for one in found) == [0, 20]
