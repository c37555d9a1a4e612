"""A tenant adds roles of its own to those that all have."""

from typing import Any

import pytest

from tests.service.tenancy.conftest import Plant, World


async def make(world: World, plant: Plant, name: str, *permissions: str) -> dict[str, Any]:
    body = {"name": name, "description": "Ours", "permissions": permissions}
    made = await world.http.post("/api/v1/roles", json=body, headers=plant.headers)
    assert made.status_code == 201, made.text
    role: dict[str, Any] = made.json()
    return role


async def test_every_tenant_has_the_built_in_roles_and_only_its_own_besides(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    await make(world, plant, "night-shift", "alerts:*")
    for tenant, own in ((plant, ["night-shift"]), (other, [])):
        listed = (await world.http.get("/api/v1/roles", headers=tenant.headers)).json()["items"]
        built_in = [role["name"] for role in listed if role["is_built_in"]]
        assert built_in == ["admin", "developer", "operator", "viewer", "auditor"]
        assert [role["name"] for role in listed if not role["is_built_in"]] == own


async def test_a_role_of_ones_own_gives_what_it_says_and_follows_its_changes(
    world: World,
) -> None:
    plant = await world.plant()
    await make(world, plant, "night-shift", "alerts:*", "devices:read")
    email = f"ann@{plant.slug}.example"
    await world.add_user(plant, email, roles=["night-shift"])

    async def permissions() -> list[str]:
        found: list[str] = (await world.log_in(email)).json()["memberships"][0]["permissions"]
        return found

    assert await permissions() == ["alerts:*", "devices:read"]
    path = "/api/v1/roles/night-shift"
    body = {"permissions": ["alerts:read"]}
    changed = await world.http.put(path, json=body, headers=plant.headers)
    assert changed.status_code == 200, changed.text
    assert await permissions() == ["alerts:read"]
    type_, said = (await world.events(plant.id))[-1]
    assert (type_, said["name"], said["permissions"]) == (
        "role.changed.v1",
        "night-shift",
        ["alerts:read"],
    )
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 409
    user_id = (await world.users(plant))[email]["id"]
    change = {"roles": ["viewer"]}
    await world.http.patch(f"/api/v1/users/{user_id}", json=change, headers=plant.headers)
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 204
    assert (await world.events(plant.id))[-1][0] == "role.deleted.v1"


async def test_another_tenants_role_looks_like_none(world: World) -> None:
    mine, theirs = await world.plant(), await world.plant()
    await make(world, theirs, "night-shift", "alerts:*")
    answers = []
    for name in ("night-shift", "never-was"):
        path = f"/api/v1/roles/{name}"
        body = {"permissions": ["alerts:read"]}
        put = await world.http.put(path, json=body, headers=mine.headers)
        deleted = await world.http.delete(path, headers=mine.headers)
        user = {"email": "a@b.example", "name": "A", "roles": [name]}
        joined = await world.http.post("/api/v1/users", json=user, headers=mine.headers)
        assert [put.status_code, deleted.status_code, joined.status_code] == [404, 404, 422]
        answers.append(
            [
                str(a.json() | {"request_id": None}).replace(name, "NAME")
                for a in (put, deleted, joined)
            ]
        )
    assert answers[0] == answers[1]


async def test_nobody_makes_a_role_that_may_more_than_they(world: World) -> None:
    plant = await world.plant()
    await make(world, plant, "keeper", "retention:write")
    headers = world.principal_headers(plant.id, "roles:write", "alerts:read")
    body = {"name": "sly", "permissions": ["alerts:*"]}
    made = await world.http.post("/api/v1/roles", json=body, headers=headers)
    assert made.status_code == 403
    path = "/api/v1/roles/keeper"
    body = {"permissions": ["alerts:read"]}
    assert (await world.http.put(path, json=body, headers=headers)).status_code == 403
    assert (await world.http.delete(path, headers=headers)).status_code == 403


@pytest.mark.parametrize(
    ("role", "status"),
    [
        ({"name": "admin", "permissions": ["alerts:read"]}, 422),
        ({"name": "Night Shift", "permissions": ["alerts:read"]}, 422),
        ({"name": "ok", "permissions": ["alerts:explode"]}, 422),
        ({"name": "ok", "permissions": ["tenancy:internal"]}, 422),
        ({"name": "ok", "permissions": ["platform:admin"]}, 422),
        ({"name": "ok", "permissions": []}, 422),
    ],
)
async def test_a_role_that_cannot_be_is_refused(
    world: World, role: dict[str, Any], status: int
) -> None:
    plant = await world.plant()
    answer = await world.http.post("/api/v1/roles", json=role, headers=plant.headers)
    assert answer.status_code == status, answer.text


async def test_a_built_in_role_stays_as_it_is(world: World) -> None:
    plant = await world.plant()
    path = "/api/v1/roles/viewer"
    body = {"permissions": ["alerts:read"]}
    assert (await world.http.put(path, json=body, headers=plant.headers)).status_code == 409
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 409


async def test_the_permissions_there_are_can_be_looked_up(world: World) -> None:
    plant = await world.plant()
    listed = (await world.http.get("/api/v1/permissions", headers=plant.headers)).json()["items"]
    assert {"alerts:acknowledge", "devices:write", "audit:read"} <= {p["name"] for p in listed}
    assert all(p["description"] for p in listed)


async def test_of_a_role_what_is_given_changes_and_the_rest_stays(world: World) -> None:
    plant = await world.plant()
    made = await make(world, plant, "night-shift", "alerts:*")
    path = "/api/v1/roles/night-shift"
    for change in ({"description": "At night"}, {"permissions": ["alerts:read"]}):
        made |= change
        changed = await world.http.patch(path, json=change, headers=plant.headers)
        assert changed.json() == made
    await make(world, plant, "keeper", "retention:write")
    limited = world.principal_headers(plant.id, "roles:write", "alerts:read")
    for name, change, status in (
        ("night-shift", {"permissions": ["alerts:*"]}, 403),
        # Also what it permits already counts.
        ("keeper", {"description": "mine"}, 403),
        ("never-was", {"description": "x"}, 404),
        ("viewer", {"description": "x"}, 409),
        ("night-shift", {"permissions": ["alerts:explode"]}, 422),
    ):
        answer = await world.http.patch(
            f"/api/v1/roles/{name}",
            json=change,
            headers=limited if status == 403 else plant.headers,
        )
        assert answer.status_code == status, answer.text
