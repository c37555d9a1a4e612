"""Why may, or may not, somebody do that?"""

from typing import Any
from uuid import UUID, uuid4

from libs.common.auth.principal import Kind
from tests.service.tenancy.conftest import World

PATH = "/api/v1/authz/explain"


async def ask(world: World, headers: dict[str, str], **question: object) -> dict[str, Any]:
    answer = await world.http.post(PATH, json=question, headers=headers)
    assert answer.status_code == 200, answer.text
    explanation: dict[str, Any] = answer.json()
    return explanation


async def test_an_admin_learns_why_a_user_may_and_why_no_more(world: World) -> None:
    plant = await world.plant()
    role = {"name": "night-shift", "permissions": ["alerts:*"]}
    await world.http.post("/api/v1/roles", json=role, headers=plant.headers)
    ann = await world.add_user(
        plant, f"ann@{plant.slug}.example", roles=["operator", "night-shift"]
    )

    async def about_ann(**question: object) -> dict[str, Any]:
        return await ask(world, plant.headers, user_id=ann["id"], **question)

    found = await about_ann(method="POST", path=f"/api/v1/alerts/{uuid4()}/acknowledge")
    assert found["allowed"]
    assert found["needs"] == ["alerts:acknowledge"]
    assert [(g["role"], g["pattern"]) for g in found["grounds"]] == [
        ("night-shift", "alerts:*"),
        ("operator", "alerts:acknowledge"),
    ]
    assert (await about_ann(permission="users:write"))["missing"] == ["users:write"]
    disabled = {"status": "disabled"}
    await world.http.patch(f"/api/v1/users/{ann['id']}", json=disabled, headers=plant.headers)
    barred = await world.http.post(f"/api/v1/users/{ann['id']}/suspend", headers=world.platform)
    assert barred.status_code == 204
    found = await about_ann(permission="alerts:read")
    assert not found["allowed"]
    assert len(found["grounds"]) == 2
    assert ["disabled" in h or "suspended" in h for h in found["hindrances"]] == [True, True]
    # Who the platform's admins are, a tenant is not told.
    found = await about_ann(method="GET", path="/api/v1/tenants")
    assert "platform" in found["hindrances"][-1]


async def test_everybody_may_ask_about_themselves_and_few_about_others(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    ann = await world.add_user(plant, f"ann@{plant.slug}.example", roles=["viewer"])
    stranger = await world.add_user(other, f"ben@{other.slug}.example")
    hers = world.principal_headers(plant.id, "roles:read", subject=UUID(ann["id"]))
    assert (await ask(world, hers, permission="alerts:read"))["allowed"]
    assert not (await ask(world, hers, permission="alerts:resolve"))["allowed"]
    made = await world.http.post(
        "/api/v1/api-keys", json={"name": "k", "scopes": ["alerts:*"]}, headers=plant.headers
    )
    key = made.json()
    programs = world.principal_headers(
        plant.id, "alerts:*", subject=UUID(key["id"]), kind=Kind.API_KEY
    )
    found = await ask(world, programs, permission="alerts:resolve")
    assert found["grounds"] == [
        {"permission": "alerts:resolve", "pattern": "alerts:*", "role": None}
    ]
    boss = (await world.users(plant))[plant.admin_email]
    for headers, about, status in (
        (hers, {"user_id": boss["id"]}, 403),
        (hers, {"api_key_id": key["id"]}, 403),
        (programs, {"user_id": ann["id"]}, 403),
        (plant.headers, {"user_id": ann["id"]}, 200),
        (plant.headers, {"api_key_id": key["id"]}, 200),
        (plant.headers, {"user_id": stranger["id"]}, 404),
        (plant.headers, {"user_id": str(uuid4())}, 404),
        (plant.headers, {"api_key_id": str(uuid4())}, 404),
    ):
        question = {"permission": "alerts:read", **about}
        answer = await world.http.post(PATH, json=question, headers=headers)
        assert answer.status_code == status, answer.text


async def test_what_cannot_be_asked_is_refused(world: World) -> None:
    plant = await world.plant()
    for question in (
        {},
        {"permission": "alerts:explode"},
        {"permission": "alerts:*"},
        {"method": "GET"},
        {"method": "GET", "path": "/api/v1/nothing"},
        {"permission": "alerts:read", "method": "GET", "path": "/api/v1/alerts"},
        {"permission": "alerts:read", "user_id": str(uuid4()), "api_key_id": str(uuid4())},
    ):
        answer = await world.http.post(PATH, json=question, headers=plant.headers)
        assert answer.status_code == 422, answer.text


async def test_of_each_permission_the_operations_are_told_that_need_it(world: World) -> None:
    plant = await world.plant()
    listed = (await world.http.get("/api/v1/permissions", headers=plant.headers)).json()["items"]
    of = {p["name"]: {(o["method"], o["path"]) for o in p["operations"]} for p in listed}
    assert ("POST", "/api/v1/alerts/{alert_id}/resolve") in of["alerts:resolve"]
    assert ("DELETE", "/api/v1/api-keys/{api_key_id}") in of["api_keys:write"]
