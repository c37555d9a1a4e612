"""Plans and quotas: what a tenant may have, what it uses, and what is said of that."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.events.base import to_message
from libs.common.events.usage import UsageCounted
from libs.common.quotas.terms import Resource
from services.tenancy.jobs import erase_closed
from services.tenancy.usecases.usage import count, count_own
from tests.service.tenancy.conftest import Plant, World
from tests.waiting import until

TODAY = datetime.now(UTC).date()


async def ask(
    world: World, method: str, path: str, status: int = 200, **json: object
) -> dict[str, Any]:
    answer = await world.http.request(
        method, f"/api/v1{path}", json=json or None, headers=world.platform
    )
    assert answer.status_code == status, answer.text
    document: dict[str, Any] = answer.json() if answer.content else {}
    return document


async def said(world: World, tenant_id: UUID, type_: str) -> list[dict[str, Any]]:
    return [body for name, body in await world.events(tenant_id) if name == f"{type_}.v1"]


async def usage(world: World, plant: Plant, **span: str) -> dict[str, Any]:
    answer = await world.http.get(
        f"/api/v1/tenants/{plant.id}/usage", params=span, headers=plant.headers
    )
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def standing(world: World, plant: Plant, resource: str) -> dict[str, Any]:
    found = {s["resource"]: s for s in (await usage(world, plant))["standing"]}
    one: dict[str, Any] = found[resource]
    return one


def counted(plant: Plant, resource: str, how: Any, amount: int, day: date = TODAY) -> UsageCounted:
    return UsageCounted(
        tenant_id=plant.id,
        at=datetime.now(UTC),
        day=day,
        resource=resource,
        how=how,
        amount=amount,
    )


async def test_a_tenant_has_what_its_plan_says_but_for_its_own_quotas(world: World) -> None:
    name = f"plan-{uuid4().hex[:8]}"
    await ask(world, "POST", "/plans", 201, name=name, quotas={"devices": {"most": 5}})
    await ask(world, "POST", "/plans", 409, name=name, quotas={})
    plant = await world.plant()
    assert await said(world, plant.id, "tenant.quotas_set") != []

    await ask(world, "PATCH", f"/tenants/{plant.id}", plan=name)
    told = (await said(world, plant.id, "tenant.quotas_set"))[-1]
    assert told["plan"] == name
    assert told["quotas"]["devices"] == {"most": 5, "warn_percent": 80}
    assert told["quotas"]["rules"]["most"] is None

    own = await ask(world, "PUT", f"/tenants/{plant.id}/quotas", quotas={"rules": {"most": 2}})
    assert own["own"] == ["rules"]
    assert own["quotas"]["rules"]["most"] == 2
    assert own["quotas"]["devices"]["most"] == 5

    # The plan changes for all who have it; what is a tenant's own stays.
    await ask(world, "PUT", f"/plans/{name}", quotas={"devices": {"most": 7}, "rules": {"most": 9}})

    async def is_told() -> bool:
        quotas = (await said(world, plant.id, "tenant.quotas_set"))[-1]["quotas"]
        return bool(quotas["devices"]["most"] == 7 and quotas["rules"]["most"] == 2)

    await until(is_told, "the tenant is told of its plan")
    await ask(world, "DELETE", f"/plans/{name}", 409)
    await ask(world, "PUT", f"/tenants/{plant.id}", name="Plant", plan="unlimited")
    await ask(world, "DELETE", f"/plans/{name}", 204)
    await ask(world, "DELETE", f"/plans/{name}", 404)
    await ask(world, "DELETE", "/plans/free", 409)
    await ask(world, "PATCH", f"/tenants/{plant.id}", 404, plan="nobodys")


async def test_plans_are_the_platforms_alone(world: World) -> None:
    plant = await world.plant()
    for method, path in (
        ("GET", "/plans"),
        ("POST", "/plans"),
        ("PUT", "/plans/free"),
        ("DELETE", "/plans/free"),
        ("PUT", f"/tenants/{plant.id}/quotas"),
        ("PUT", f"/tenants/{plant.id}"),
    ):
        answer = await world.http.request(method, f"/api/v1{path}", json={}, headers=plant.headers)
        assert answer.status_code in (403, 422), f"{method} {path}: {answer.status_code}"
        if answer.status_code == 422:
            continue
    names = [plan["name"] for plan in (await ask(world, "GET", "/plans"))["items"]]
    assert {"free", "standard", "unlimited"} <= set(names)


async def test_a_tenant_invites_as_many_users_as_its_plan_allows_and_not_one_more(
    world: World,
) -> None:
    plant = await world.plant()
    await ask(world, "PUT", f"/tenants/{plant.id}/quotas", quotas={"users": {"most": 3}})

    async def invite(number: int) -> int:
        body = {"email": f"u{number}@{plant.slug}.example", "name": "U", "roles": ["viewer"]}
        answer = await world.http.post("/api/v1/users", json=body, headers=plant.headers)
        if answer.status_code != 201:
            assert answer.json()["type"] == "urn:iiot:problem:quota-exceeded"
            assert "quota users: the tenant's plan allows 3" in answer.json()["detail"]
        return answer.status_code

    # The admin is there already; all at once, and two of them find room.
    answers = await asyncio.gather(*[invite(number) for number in range(6)])
    assert sorted(answers) == [201, 201, 409, 409, 409, 409]
    here = await standing(world, plant, "users")
    assert (here["used"], here["most"], here["level"]) == (3, 3, "reached")
    assert [(e["resource"], e["level"]) for e in await said(world, plant.id, "quota.exceeded")] == [
        ("users", "reached")
    ]
    [day] = (await usage(world, plant))["days"]
    assert day["amounts"]["users"] == 3

    users = await world.users(plant)
    leaves = next(user["id"] for email, user in users.items() if email.startswith("u"))
    await world.http.delete(f"/api/v1/users/{leaves}", headers=plant.headers)
    assert (await standing(world, plant, "users"))["used"] == 2
    assert [e["resource"] for e in await said(world, plant.id, "quota.relieved")] == ["users"]
    [day] = (await usage(world, plant))["days"]
    assert day["amounts"]["users"] == 3, "the most at a time on that day"
    assert await invite(9) == 201


async def test_what_is_counted_twice_shows_once(world: World, bus: LocalBus) -> None:
    plant = await world.plant()
    await ask(
        world,
        "PUT",
        f"/tenants/{plant.id}/quotas",
        quotas={"api_calls_per_day": {"most": 100}, "points_per_day": {"most": 1000}},
    )
    yesterday = TODAY - timedelta(days=1)
    calls = [counted(plant, "api_calls_per_day", "added", amount) for amount in (40, 41, 19)]
    points = [counted(plant, "points_per_day", "total", amount) for amount in (300, 500, 400)]
    late = [
        counted(plant, "points_per_day", "total", 70, yesterday),
        counted(plant, "points_per_day", "total", 90, yesterday),
    ]
    gone = [counted(Plant(uuid4(), "", "", {}), "points_per_day", "total", 1)]
    # Each twice, as a bus may.
    for event in [*calls, *points, *late, *gone] * 2:
        await bus.publish([to_message(event)])

    async def is_counted() -> bool:
        return (
            len((await usage(world, plant))["days"]) == 2
            and (await standing(world, plant, "api_calls_per_day"))["used"] == 100
        )

    await until(is_counted, "usage is added up")
    span = await usage(world, plant, **{"from": str(yesterday), "to": str(TODAY)})
    assert span["days"][0]["amounts"] == {"points_per_day": 90}
    assert span["days"][1]["amounts"]["api_calls_per_day"] == 100
    assert span["days"][1]["amounts"]["points_per_day"] == 500
    told = [(e["level"], e["used"]) for e in await said(world, plant.id, "quota.exceeded")]
    assert told == [("warning", 81), ("reached", 100)]
    calls_now = await standing(world, plant, "api_calls_per_day")
    assert calls_now["level"] == "reached"
    assert calls_now["resets_at"].startswith(str(TODAY + timedelta(days=1)))
    # A larger plan, and all is well.
    await ask(world, "PUT", f"/tenants/{plant.id}/quotas", quotas={})
    assert [e["resource"] for e in await said(world, plant.id, "quota.relieved")] == [
        "api_calls_per_day"
    ]


async def test_a_span_must_be_one(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    for span in ({"from": "2026-02-02", "to": "2026-02-01"}, {"from": "2020-01-01"}):
        answer = await world.http.get(
            f"/api/v1/tenants/{plant.id}/usage", params=span, headers=plant.headers
        )
        assert answer.status_code == 422, answer.text
    answer = await world.http.get(f"/api/v1/tenants/{other.id}/usage", headers=plant.headers)
    assert answer.status_code == 404


async def test_what_is_used_is_counted_while_somebody_is_being_invited(world: World) -> None:
    plant = await world.plant()
    transactions = world.app.state.transactions
    async with asyncio.timeout(10), transactions.begin(plant.id) as inviting:
        await inviting.tenants.lock()
        # Its rows belong to the tenant that is locked: it must not wait, for it has the turn that the
        # other one will want.
        async with transactions.begin(plant.id) as counting:
            await count(
                counting,
                Resource.API_CALLS_PER_DAY,
                1,
                day=TODAY,
                how="added",
                at=datetime.now(UTC),
            )
        await count_own(inviting, Resource.USERS, 2, at=datetime.now(UTC))
    assert (await standing(world, plant, "users"))["used"] == 2


async def test_a_month_is_billed_by_tenant_and_for_all(world: World, bus: LocalBus) -> None:
    plant, other = await world.plant(), await world.plant()
    for number in (1, 2):
        amount = counted(plant, "points_per_day", "total", 100 * number, date(2026, 2, number))
        await bus.publish([to_message(amount)])
    mine = f"/api/v1/tenants/{plant.id}/billing"

    async def is_billed() -> bool:
        answer = await world.http.get(mine, params={"month": "2026-02"}, headers=plant.headers)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["amounts"]["points"] == 300)

    await until(is_billed, "the month is added up")
    query = {"month": "2026-02", "format": "csv"}
    sheet = await world.http.get("/api/v1/billing", params=query, headers=world.platform)
    assert sheet.headers["content-type"].startswith("text/csv")
    lines = {line.split(",")[2]: line for line in sheet.text.splitlines()}
    assert ",300," in lines[plant.slug]
    assert other.slug in lines
    bills = await ask(world, "GET", "/billing?month=2026-02")
    assert {one["slug"]: one["amounts"]["points"] for one in bills["items"]}[plant.slug] == 300
    for path, headers, status in (
        ("/api/v1/billing", plant.headers, 403),
        (f"/api/v1/tenants/{other.id}/billing", plant.headers, 404),
    ):
        answer = await world.http.get(path, params={"month": "2026-02"}, headers=headers)
        assert answer.status_code == status
    bad = await world.http.get(mine, params={"month": "2026-13"}, headers=plant.headers)
    assert bad.status_code == 422


async def test_a_tenant_looks_as_its_own_admins_set_it_also_before_anybody_logs_in(
    world: World,
) -> None:
    plant = await world.plant()
    path = f"/api/v1/tenants/{plant.id}/branding"
    look = {"product_name": "Acme Watch", "colour_on_light": "#0b5cad", "sender_name": "Acme"}
    set_ = await world.http.put(path, json=look, headers=plant.headers)
    assert set_.status_code == 200, set_.text
    assert (await world.http.get(path, headers=plant.headers)).json()["sender_name"] == "Acme"
    pale = await world.http.put(path, json={"colour_on_light": "#ffff00"}, headers=plant.headers)
    assert pale.json()["errors"][0]["pointer"] == "#/colour_on_light"

    shown = {"product_name": "Acme Watch", "colour_on_light": "#0b5cad", "colour_on_dark": None}
    of_host = {"host": f"{plant.slug}.plants.example"}
    assert (await world.http.get("/api/v1/branding", headers=of_host)).json() == shown
    named = await world.http.get("/api/v1/branding", params={"tenant": plant.slug})
    assert named.json() == shown
    nobody = await world.http.get("/api/v1/branding", params={"tenant": "nobody"})
    assert set(nobody.json().values()) == {None}


async def test_a_closing_tenant_is_taken_back_or_erased_when_its_grace_is_over(
    world: World,
) -> None:
    plant, other = await world.plant(), await world.plant()
    path = f"/tenants/{plant.id}"
    suspended = await ask(world, "POST", f"{path}/suspend", reason="not paid")
    assert (suspended["status"], suspended["status_reason"]) == ("suspended", "not paid")
    assert (await ask(world, "POST", f"{path}/resume"))["status"] == "active"

    for tenant in (plant, other):
        await ask(world, "DELETE", f"/tenants/{tenant.id}?grace=P3D&reason=left", 204)
        assert (await world.log_in(tenant.admin_email)).status_code == 401
    closing = await ask(world, "GET", path)
    assert (closing["status"], closing["status_reason"]) == ("closing", "left")
    await ask(world, "POST", f"{path}/suspend", 409)
    await ask(world, "POST", f"/tenants/{other.id}/resume")
    assert (await world.log_in(other.admin_email)).status_code == 200

    engine = Database(world.urls.engine("tenancy"), across_tenants=True)
    clock = SystemClock()
    try:
        for days, status in ((2, 200), (4, 404)):
            clock.offset = timedelta(days=days)
            transactions = world.app.state.transactions
            await asyncio.gather(*[erase_closed(engine, transactions, clock) for _ in range(2)])
            await ask(world, "GET", path, status)
    finally:
        await engine.close()
    assert [name for name, _ in await world.events(plant.id)].count("tenant.deleted.v1") == 1
    assert (await ask(world, "GET", f"/tenants/{other.id}"))["status"] == "active"
