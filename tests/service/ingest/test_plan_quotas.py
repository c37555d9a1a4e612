"""What a tenant's plan allows of devices, metrics and points."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import aiomqtt
import httpx2

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.events.base import to_message
from libs.common.events.tenancy import QuotaTerms, TenantQuotasSet
from services.ingest.app import build
from services.ingest.settings import Settings
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.quotas import allow, counted
from tests.service.ingest.conftest import World, running
from tests.waiting import until

NOON = int(datetime.now(UTC).replace(minute=0, second=0, microsecond=0).timestamp() * 1000)


async def test_as_many_devices_as_the_plan_allows_and_not_one_more(
    world: World, bus: LocalBus
) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, devices=3)

    async def register(name: str) -> int:
        answer = await world.http.post(
            "/api/v1/devices", json={"name": name, "type": "pump"}, headers=world.headers
        )
        if answer.status_code != 201:
            problem = answer.json()
            assert problem["type"] == "urn:iiot:problem:quota-exceeded"
            assert "allows 3 devices, and this would make 4" in problem["detail"]
        return answer.status_code

    answers = await asyncio.gather(*[register(f"pump {n}") for n in range(8)])
    assert sorted(answers) == [201] * 3 + [409] * 5
    assert await counted(world.urls, world.tenant_id, "devices") == [1, 2, 3]

    # By a sheet neither, not even a part of it.
    sheet = "name,type\na,pump\nb,pump\n"
    headers = {**world.headers, "content-type": "text/csv"}
    imported = await world.http.post("/api/v1/devices/import", content=sheet, headers=headers)
    assert imported.json()["type"] == "urn:iiot:problem:quota-exceeded", imported.text

    # One goes, and there is room for one: it, or another.
    [gone, *_] = await world.query(
        "SELECT id FROM ingest.devices WHERE tenant_id = $1", world.tenant_id
    )
    path = f"/api/v1/devices/{gone['id']}"
    assert (await world.http.delete(path, headers=world.headers)).status_code == 204
    assert await register("another") == 201
    restored = await world.http.post(f"{path}/restore", headers=world.headers)
    assert restored.status_code == 409
    assert await counted(world.urls, world.tenant_id, "devices") == [1, 2, 3, 2, 3]

    # A larger plan lets more in; another tenant never noticed.
    await allow(bus, world.urls, "ingest", world.tenant_id, devices=None)
    assert await register("one more") == 201


async def test_an_older_word_of_a_quota_does_not_stand_against_a_newer_one(
    world: World, bus: LocalBus
) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, devices=5)
    older = TenantQuotasSet(
        tenant_id=world.tenant_id,
        at=datetime.now(UTC) - timedelta(minutes=1),
        plan="older",
        quotas={"devices": QuotaTerms(1, 80), "users": QuotaTerms(1, 80)},
    )
    await bus.publish([to_message(older)])
    kept = "SELECT resource, most FROM ingest.quotas WHERE tenant_id = $1"

    async def is_heard() -> bool:
        return len(await world.query(kept, world.tenant_id)) == 2

    await until(is_heard, "the older word is heard")
    assert {row["resource"]: row["most"] for row in await world.query(kept, world.tenant_id)} == {
        "devices": 5,
        "users": 1,
    }


async def send(world: World, device: UUID, *values: float) -> httpx2.Response:
    readings = [
        {"device_id": str(device), "ts": NOON + 1000 * n, "values": {"temp": value}}
        for n, value in enumerate(values)
    ]
    return await world.http.post("/api/v1/telemetry", json=readings, headers=world.headers)


async def test_of_a_days_points_as_many_are_taken_as_the_plan_allows_and_the_others_are_kept(
    world: World, bus: LocalBus
) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, points_per_day=10)
    (pump, _), (press, token) = await world.device(), await world.device()
    first = await send(world, pump, *range(8))
    assert (first.status_code, first.json()["accepted"]) == (202, 8)

    # The last of a list do not fit: they lie in quarantine, to be replayed another day.
    part = (await send(world, press, *range(5))).json()
    assert part["accepted"] == 2
    assert [(r["index"], r["reason"]) for r in part["rejected"]] == [
        (n, "quota_exceeded") for n in (2, 3, 4)
    ]

    # From then on there is nothing to be had before tomorrow, and who asks is told so.
    late = await send(world, pump, 1.0)
    assert late.status_code == 429, late.text
    assert late.json()["type"] == "urn:iiot:problem:quota-spent"
    assert "quota points_per_day: the tenant's plan allows 10" in late.json()["detail"]
    assert 0 < int(late.headers["retry-after"]) <= 86400

    # A device that speaks MQTT is acknowledged: what it said is kept, and named.
    async with aiomqtt.Client("127.0.0.1", world.mqtt_port, username=token) as client:
        await client.publish("v1/devices/me/telemetry", json.dumps({"temp": 96}), qos=1)

    async def lie_in_quarantine() -> bool:
        rows = await world.query(
            "SELECT FROM ingest.quarantine WHERE tenant_id = $1 AND reason = 'quota_exceeded'",
            world.tenant_id,
        )
        return len(rows) == 4

    await until(lie_in_quarantine, "what is beyond the plan is in quarantine")
    await world.until_stored(pump, 8)
    await world.until_stored(press, 2)

    # What is stored is what is told, to the point.
    async def is_told() -> bool:
        await world.http.get("/api/v1/telemetry/ledger", headers=world.headers)
        return (await counted(world.urls, world.tenant_id, "points_per_day"))[-1:] == [10]

    await until(is_told, "the day's points are told")

    # A larger plan, and it goes on at once.
    await allow(bus, world.urls, "ingest", world.tenant_id, points_per_day=None)

    async def goes_on() -> bool:
        return (await send(world, pump, 1.0)).status_code == 202

    await until(goes_on, "points are taken again")


async def test_devices_that_race_for_the_days_last_points_do_not_overshoot(
    world: World, bus: LocalBus
) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, points_per_day=20)
    devices = [(await world.device())[0] for _ in range(6)]
    answers = await asyncio.gather(*[send(world, device, *range(7)) for device in devices])
    taken = sum(answer.json().get("accepted", 0) for answer in answers)
    assert taken == 20


async def test_a_tenant_that_is_faster_than_its_plan_is_told_to_come_again(
    world: World, bus: LocalBus
) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, points_per_second=10)
    pump, _ = await world.device()
    # As many at once as come in five seconds; what is beyond is owed.
    assert (await send(world, pump, *range(60))).status_code == 202
    refused = await send(world, pump, 1.0)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "10 points a second" in refused.json()["detail"]


async def test_as_many_metrics_as_the_plan_allows(world: World, bus: LocalBus) -> None:
    await allow(bus, world.urls, "ingest", world.tenant_id, metrics=3)
    (pump, _), (press, _) = await world.device(), await world.device()
    values = {"temp": 1, "speed": 2}
    for device, accepted in ((pump, 2), (press, 1)):
        answer = await world.http.post(
            "/api/v1/telemetry",
            json={"device_id": str(device), "values": values},
            headers=world.headers,
        )
        assert answer.json()["accepted"] == accepted, answer.text
    assert [r["reason"] for r in answer.json()["rejected"]] == ["too_many_metrics"]


async def test_who_has_stored_all_that_the_plan_allows_stores_no_more(
    settings: Settings,
    bus: LocalBus,
    keys: KeySource,
    database_urls: DatabaseUrls,
    principal_headers: PrincipalHeaders,
) -> None:
    settings = settings.model_copy(update={"storage_counted": timedelta(milliseconds=100)})
    tenant_id = uuid4()
    app = build(settings, bus, SystemClock(), keys=keys)
    async with running(app, bus, database_urls, tenant_id, principal_headers(tenant_id)) as world:
        pump, _ = await world.device()
        assert (await send(world, pump, *range(10))).status_code == 202

        async def is_counted() -> bool:
            return (await counted(world.urls, tenant_id, "storage_bytes"))[-1:] == [940]

        await until(is_counted, "the room that the points take is counted")
        await allow(bus, world.urls, "ingest", tenant_id, storage_bytes=900)

        async def is_full() -> bool:
            return (await send(world, pump, 7.0)).status_code == 429

        await until(is_full, "no more is stored")
        refused = await send(world, pump, 7.0)
        assert "quota storage_bytes" in refused.json()["detail"]
