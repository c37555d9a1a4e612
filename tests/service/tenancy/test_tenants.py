"""Tenants are opened and closed by the platform's admins, and see nothing of each other."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from services.tenancy.jobs import remove_again
from tests.service.tenancy.conftest import World


async def test_a_new_tenants_admin_logs_in_once_the_invitation_is_accepted(world: World) -> None:
    plant = await world.plant()
    answer = await world.log_in(plant.admin_email)
    assert answer.status_code == 200, answer.text
    account = answer.json()
    assert account["platform_admin"] is False
    assert account["memberships"] == [
        {
            "tenant_id": str(plant.id),
            "tenant_slug": plant.slug,
            "tenant_name": plant.slug,
            "tenant_plan": "unlimited",
            "name": "Boss",
            "roles": ["admin"],
            "permissions": ["*"],
            "device_groups": None,
            "second_factor_required": False,
        }
    ]
    assert [type_ for type_, _ in await world.events(plant.id)] == [
        "tenant.created.v1",
        "tenant.quotas_set.v1",
        "user.created.v1",
        "membership.changed.v1",
    ]


async def test_a_tenants_admin_cannot_open_or_list_tenants(world: World) -> None:
    plant = await world.plant()
    body = {"slug": "mine", "name": "Mine"}
    opened = await world.http.post("/api/v1/tenants", json=body, headers=plant.headers)
    assert opened.status_code == 403
    assert (await world.http.get("/api/v1/tenants", headers=plant.headers)).status_code == 403
    path = f"/api/v1/tenants/{plant.id}"
    assert (await world.http.patch(path, json={}, headers=plant.headers)).status_code == 403
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 403


async def test_a_foreign_tenant_looks_like_none(world: World) -> None:
    mine, theirs = await world.plant(), await world.plant()
    own = await world.http.get(f"/api/v1/tenants/{mine.id}", headers=mine.headers)
    assert (own.status_code, own.json()["slug"]) == (200, mine.slug)
    nobody = uuid4()
    foreign = await world.http.get(f"/api/v1/tenants/{theirs.id}", headers=mine.headers)
    unknown = await world.http.get(f"/api/v1/tenants/{nobody}", headers=mine.headers)
    assert foreign.status_code == unknown.status_code == 404
    assert set(foreign.headers) == set(unknown.headers)
    told = foreign.json() | {"request_id": None}
    assert str(told).replace(str(theirs.id), "ID") == str(
        unknown.json() | {"request_id": None}
    ).replace(str(nobody), "ID")


async def test_the_platforms_admin_sees_every_tenant_page_by_page(world: World) -> None:
    plants = [await world.plant() for _ in range(3)]
    found, cursor = [], None
    while True:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = await world.http.get("/api/v1/tenants", params=query, headers=world.platform)
        assert page.status_code == 200, page.text
        assert len(page.json()["items"]) <= 2
        found += [tenant["id"] for tenant in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert [id_ for id_ in found if id_ in {str(p.id) for p in plants}] == [
        str(plant.id) for plant in plants
    ]
    assert len(found) == len(set(found))
    one = await world.http.get(f"/api/v1/tenants/{plants[0].id}", headers=world.platform)
    assert one.json()["slug"] == plants[0].slug


async def test_nobody_enters_a_suspended_tenant(world: World) -> None:
    plant = await world.plant()
    path = f"/api/v1/tenants/{plant.id}"
    suspended = await world.http.patch(path, json={"status": "suspended"}, headers=world.platform)
    assert suspended.json()["status"] == "suspended"
    assert (await world.log_in(plant.admin_email)).status_code == 401
    assert (await world.events(plant.id))[-1][0] == "tenant.updated.v1"
    await world.http.patch(path, json={"status": "active"}, headers=world.platform)
    assert (await world.log_in(plant.admin_email)).status_code == 200


async def test_an_admin_does_not_suspend_the_tenant_they_came_in_by(world: World) -> None:
    plant = await world.plant()
    headers = world.principal_headers(plant.id, "*", platform_admin=True)
    path = f"/api/v1/tenants/{plant.id}"
    answer = await world.http.patch(path, json={"status": "suspended"}, headers=headers)
    assert answer.status_code == 409


async def test_a_tenant_is_removed_with_those_who_belong_to_no_other(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    both = f"both@{plant.slug}.example"
    await world.add_user(plant, both)
    await world.add_user(other, both)
    path = f"/api/v1/tenants/{plant.id}"
    at_once = f"{path}?grace=PT0S"
    assert (await world.http.delete(at_once, headers=world.platform)).status_code == 409
    await world.http.patch(path, json={"status": "suspended"}, headers=world.platform)
    assert (await world.http.delete(at_once, headers=world.platform)).status_code == 204
    assert (await world.http.get(path, headers=world.platform)).status_code == 404
    left = await world.query(
        "SELECT email FROM tenancy.users WHERE email = ANY($1)", [both, plant.admin_email]
    )
    assert [row["email"] for row in left] == [both]
    account = (await world.log_in(both)).json()
    assert [m["tenant_slug"] for m in account["memberships"]] == [other.slug]
    assert (await world.events(plant.id))[-1][0] == "tenant.deleted.v1"


async def test_that_a_tenant_was_removed_is_said_again_a_day_later_once(world: World) -> None:
    plant, there = await world.plant(), await world.plant()
    path = f"/api/v1/tenants/{plant.id}"
    await world.http.patch(path, json={"status": "suspended"}, headers=world.platform)
    await world.http.delete(path, params={"grace": "PT0S"}, headers=world.platform)
    # A request that was under way when the tenant went.
    await world.query(
        "INSERT INTO tenancy.idempotency_keys (tenant_id, key, request) VALUES ($1, '', '')",
        plant.id,
    )

    async def said() -> int:
        return [name for name, _ in await world.events(plant.id)].count("tenant.deleted.v1")

    engine = Database(world.urls.engine("tenancy"), across_tenants=True)
    clock = SystemClock()

    async def look(after: timedelta) -> None:
        clock.offset = after
        transactions = world.app.state.transactions
        await asyncio.gather(
            *[remove_again(engine, transactions, clock, timedelta(days=1)) for _ in range(2)]
        )

    try:
        await look(timedelta(hours=23))
        assert await said() == 1
        await look(timedelta(hours=25))
        await look(timedelta(hours=49))
    finally:
        await engine.close()
    assert await said() == 2
    assert [name for name, _ in await world.events(there.id)].count("tenant.deleted.v1") == 0
    for table in ("idempotency_keys", "removed_tenants"):
        rows = await world.query(f"SELECT FROM tenancy.{table} WHERE tenant_id = $1", plant.id)
        assert not rows, table


async def test_who_saw_an_older_version_changes_nothing(world: World) -> None:
    plant = await world.plant()
    path = f"/api/v1/tenants/{plant.id}"
    headers = world.platform | {"if-match": '"1"'}
    first = await world.http.patch(path, json={"name": "First"}, headers=headers)
    assert (first.status_code, first.json()["version"]) == (200, 2)
    second = await world.http.patch(path, json={"name": "Second"}, headers=headers)
    assert second.status_code == 412


async def test_a_slug_is_taken_once(world: World) -> None:
    plant = await world.plant()
    body = {"slug": plant.slug, "name": "Again"}
    answer = await world.http.post("/api/v1/tenants", json=body, headers=world.platform)
    assert answer.status_code == 409


@pytest.mark.parametrize("slug", ["", "Acme", "-acme", "acme-", "ac me", "a" * 64, "acme\n"])
async def test_a_slug_must_fit_into_an_address(world: World, slug: str) -> None:
    body = {"slug": slug, "name": "Acme"}
    answer = await world.http.post("/api/v1/tenants", json=body, headers=world.platform)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/slug"
