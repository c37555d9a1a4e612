"""A tenant's admins look after its users, and learn nothing of others."""

from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from tests.service.tenancy.conftest import PASSWORD, World


def without_id(user: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs between any two users."""
    return user | dict.fromkeys(("id", "email", "created_at", "updated_at"))


async def test_a_user_joins_is_seen_changed_and_leaves(world: World) -> None:
    plant = await world.plant()
    email = f"Ann@{plant.slug.upper()}.Example"
    ann = await world.add_user(plant, email, name="Ann", roles=["viewer"])
    assert ann["email"] == f"ann@{plant.slug}.example"
    assert (ann["roles"], ann["status"], ann["version"]) == (["viewer"], "active", 2)
    path = f"/api/v1/users/{ann['id']}"
    assert (await world.http.get(path, headers=plant.headers)).json() == ann
    changed = await world.http.patch(
        path, json={"name": "Ann B.", "roles": ["operator"]}, headers=plant.headers
    )
    assert (changed.json()["name"], changed.json()["roles"]) == ("Ann B.", ["operator"])
    assert (await world.http.delete(path, headers=plant.headers)).status_code == 204
    assert (await world.http.get(path, headers=plant.headers)).status_code == 404
    said = [
        (type_, body.get("roles") or body.get("name"))
        for type_, body in await world.events(plant.id)
        if body.get("user_id") == ann["id"]
    ]
    assert said == [
        ("user.created.v1", "Ann"),
        ("membership.changed.v1", ["viewer"]),
        ("user.updated.v1", "Ann B."),
        ("membership.changed.v1", ["operator"]),
        ("membership.removed.v1", None),
        ("user.deleted.v1", None),
    ]


async def test_users_are_listed_page_by_page_and_only_the_tenants_own(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    for number in range(3):
        await world.add_user(plant, f"user{number}@{plant.slug}.example")
    await world.add_user(other, f"stranger@{other.slug}.example")
    found, cursor = [], None
    while True:
        query = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = await world.http.get("/api/v1/users", params=query, headers=plant.headers)
        found += [user["email"].partition("@")[0] for user in page.json()["items"]]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert found == ["boss", "user0", "user1", "user2"]


async def test_whether_an_address_was_known_cannot_be_told(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    known, new = f"known@{plant.slug}.example", f"new@{plant.slug}.example"
    await world.add_user(other, known, name="Somebody Else")
    answers = {email: await world.invite(plant, email, name="Ann") for email in (known, new)}
    for answer in answers.values():
        invitation = answer.pop("invitation")
        assert invitation.keys() == {"token", "expires_at"}
        refused = await world.try_to_accept(invitation["token"], "too short")
        assert refused.status_code == 422
    assert without_id(answers[known]) == without_id(answers[new])
    seen = await world.users(plant)
    assert without_id(seen[known]) == without_id(seen[new])
    assert seen[known]["created_at"] == answers[known]["created_at"]
    ids = {answer["id"] for answer in answers.values()}
    assert not [t for t, body in await world.events(plant.id) if body.get("user_id") in ids]


async def test_who_belongs_to_no_tenant_any_more_is_forgotten(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.add_user(plant, email)
    await world.add_user(other, email)

    async def is_known() -> bool:
        return bool(await world.query("SELECT FROM tenancy.users WHERE email = $1", email))

    for tenant, known_afterwards in ((plant, True), (other, False)):
        path = f"/api/v1/users/{ann['id']}"
        assert (await world.http.delete(path, headers=tenant.headers)).status_code == 204
        assert await is_known() is known_afterwards
    assert (await world.add_user(plant, email))["id"] != ann["id"]


async def test_what_one_tenant_calls_a_user_the_other_does_not_see(world: World) -> None:
    here, there = await world.plant(), await world.plant()
    email = f"ann@{here.slug}.example"
    ann = await world.add_user(here, email, name="Ann")
    await world.add_user(there, email, name="Ms Anders", roles=["viewer"])
    path = f"/api/v1/users/{ann['id']}"
    await world.http.patch(path, json={"name": "Annie"}, headers=here.headers)
    assert (await world.users(there))[email]["name"] == "Ms Anders"
    account = (await world.log_in(email)).json()
    assert [(m["tenant_slug"], m["name"], m["roles"]) for m in account["memberships"]] == [
        (here.slug, "Annie", ["operator"]),
        (there.slug, "Ms Anders", ["viewer"]),
    ]


async def test_a_foreign_user_looks_like_none(world: World) -> None:
    mine, theirs = await world.plant(), await world.plant()
    foreign_id = (await world.add_user(theirs, f"ann@{theirs.slug}.example"))["id"]
    unknown_id = str(uuid4())
    for method, body in (("GET", None), ("PATCH", {"name": "X"}), ("DELETE", None)):
        foreign, unknown = [
            await world.http.request(
                method, f"/api/v1/users/{id_}", json=body, headers=mine.headers
            )
            for id_ in (foreign_id, unknown_id)
        ]
        assert foreign.status_code == unknown.status_code == 404, method
        assert set(foreign.headers) == set(unknown.headers)
        told = [
            str(answer.json() | {"request_id": None}).replace(id_, "ID")
            for answer, id_ in ((foreign, foreign_id), (unknown, unknown_id))
        ]
        assert told[0] == told[1]
    assert (await world.users(theirs))[f"ann@{theirs.slug}.example"]["name"] == "Ann"


async def test_a_disabled_user_cannot_log_in_to_that_tenant(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.add_user(plant, email)
    path = f"/api/v1/users/{ann['id']}"
    await world.http.patch(path, json={"status": "disabled"}, headers=plant.headers)
    assert (await world.log_in(email)).status_code == 401
    refreshed = await world.http.get(f"/internal/v1/users/{ann['id']}", headers=world.gateway)
    assert refreshed.status_code == 404
    assert (await world.events(plant.id))[-1][0] == "user.disabled.v1"
    await world.add_user(other, email)
    account = (await world.log_in(email)).json()
    assert [m["tenant_slug"] for m in account["memberships"]] == [other.slug]
    await world.http.patch(path, json={"status": "active"}, headers=plant.headers)
    assert (await world.events(plant.id))[-1][0] == "user.enabled.v1"
    assert len((await world.log_in(email)).json()["memberships"]) == 2


async def test_a_suspended_user_enters_nowhere_and_every_tenant_hears_it(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    email = f"ann@{plant.slug}.example"
    ann = await world.add_user(plant, email)
    await world.add_user(other, email)
    path = f"/api/v1/users/{ann['id']}"
    refused = await world.http.post(f"{path}/suspend", headers=plant.headers)
    assert refused.status_code == 403
    assert (await world.http.post(f"{path}/suspend", headers=world.platform)).status_code == 204
    assert (await world.log_in(email)).status_code == 401
    for tenant in (plant, other):
        type_, body = (await world.events(tenant.id))[-1]
        assert (type_, body["user_id"]) == ("user.disabled.v1", ann["id"])
        assert body["tenant_id"] == str(tenant.id)
    assert (await world.http.post(f"{path}/suspend", headers=world.platform)).status_code == 409
    await world.http.post(f"{path}/reinstate", headers=world.platform)
    assert (await world.log_in(email)).status_code == 200


@pytest.mark.parametrize("change", [{"roles": ["viewer"]}, {"status": "disabled"}, None])
async def test_a_tenant_keeps_its_last_administrator(
    world: World, change: dict[str, Any] | None
) -> None:
    plant = await world.plant()
    boss = (await world.users(plant))[plant.admin_email]
    path = f"/api/v1/users/{boss['id']}"

    async def leave() -> int:
        if change is None:
            return (await world.http.delete(path, headers=plant.headers)).status_code
        return (await world.http.patch(path, json=change, headers=plant.headers)).status_code

    assert await leave() == 409
    await world.add_user(plant, f"second@{plant.slug}.example", roles=["admin"])
    assert await leave() in {200, 204}


async def test_nobody_hands_out_or_takes_away_more_than_they_may_themselves(world: World) -> None:
    plant = await world.plant()
    boss = (await world.users(plant))[plant.admin_email]
    clerk = world.principal_headers(plant.id, "users:read", "users:write", "*:read")
    body = {"email": f"x@{plant.slug}.example", "name": "X", "roles": ["admin"]}
    assert (await world.http.post("/api/v1/users", json=body, headers=clerk)).status_code == 403
    path = f"/api/v1/users/{boss['id']}"
    disabled = await world.http.patch(path, json={"status": "disabled"}, headers=clerk)
    assert disabled.status_code == 403
    assert (await world.http.delete(path, headers=clerk)).status_code == 403
    body["roles"] = ["viewer"]
    added = await world.http.post("/api/v1/users", json=body, headers=clerk)
    assert added.status_code == 201
    path = f"/api/v1/users/{added.json()['id']}"
    raised = await world.http.patch(path, json={"roles": ["admin"]}, headers=clerk)
    assert raised.status_code == 403


async def test_who_is_a_member_already_is_not_added_twice(world: World) -> None:
    plant = await world.plant()
    body = {"email": plant.admin_email.upper(), "name": "Boss", "roles": ["viewer"]}
    answer = await world.http.post("/api/v1/users", json=body, headers=plant.headers)
    assert answer.status_code == 409
    assert (await world.users(plant))[plant.admin_email]["roles"] == ["admin"]


@pytest.mark.parametrize(
    ("fault", "pointer"),
    [
        ({"email": "nobody"}, "#/email"),
        ({"email": "a b@plant.example"}, "#/email"),
        ({"password": PASSWORD}, "#/password"),
        ({"roles": ["operator", "emperor"]}, "#/roles/1"),
        ({"roles": []}, "#/roles"),
        ({"name": ""}, "#/name"),
        ({"tenant_id": str(UUID(int=0))}, "#/tenant_id"),
        ({"is_platform_admin": True}, "#/is_platform_admin"),
    ],
)
async def test_a_fault_is_named_where_it_is_and_nobody_sets_a_password_for_another(
    world: World, fault: dict[str, Any], pointer: str
) -> None:
    plant = await world.plant()
    body = {"email": "ann@plant.example", "name": "Ann", "roles": ["operator"]} | fault
    answer = await world.http.post("/api/v1/users", json=body, headers=plant.headers)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert PASSWORD not in answer.text


async def test_a_viewer_neither_sees_nor_changes_users(world: World) -> None:
    plant = await world.plant()
    viewer = world.principal_headers(plant.id, "devices:read", "roles:read")
    assert (await world.http.get("/api/v1/users", headers=viewer)).status_code == 403
    assert (await world.http.get("/api/v1/users")).status_code == 401


async def test_roles_are_given_and_taken_one_by_one(world: World) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"ann@{plant.slug}.example")
    path = f"/api/v1/users/{ann['id']}/roles"

    async def give(*roles: str) -> httpx2.Response:
        return await world.http.post(path, json={"roles": roles}, headers=plant.headers)

    async def take(role: str) -> int:
        answer = await world.http.delete(f"{path}/{role}", headers=plant.headers)
        return answer.status_code

    assert (await give("auditor", "operator")).json()["roles"] == ["auditor", "operator"]
    version = (await give("viewer")).json()["version"]
    # What changes nothing is said to nobody.
    assert (await give("viewer")).json()["version"] == version
    assert (await give("never-was")).status_code == 422
    assert await take("operator") == 204
    assert await take("operator") == 404
    assert await take("auditor") == 204
    assert await take("viewer") == 409
    said = [e["roles"] for t, e in await world.events(plant.id) if t == "membership.changed.v1"]
    assert said[-4:] == [
        ["auditor", "operator"],
        ["auditor", "operator", "viewer"],
        ["auditor", "viewer"],
        ["viewer"],
    ]
    # Nobody gives, or takes, what is beyond them; the last admin stays one.
    keeper = world.principal_headers(plant.id, "users:write", "alerts:read")
    given = await world.http.post(path, json={"roles": ["developer"]}, headers=keeper)
    assert given.status_code == 403
    boss = (await world.users(plant))[plant.admin_email]
    more = await world.http.post(
        f"/api/v1/users/{boss['id']}/roles", json={"roles": ["viewer"]}, headers=plant.headers
    )
    assert more.status_code == 200
    last = await world.http.delete(f"/api/v1/users/{boss['id']}/roles/admin", headers=plant.headers)
    assert last.status_code == 409


async def test_what_a_tenant_says_of_a_user_is_said_anew_as_a_whole(world: World) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"ann@{plant.slug}.example")
    path = f"/api/v1/users/{ann['id']}"
    whole = {"name": "Ann B.", "roles": ["viewer"], "status": "disabled"}
    seen = {**plant.headers, "if-match": str(ann["version"])}
    put = await world.http.put(path, json=whole, headers=seen)
    assert put.status_code == 200, put.text
    assert {k: put.json()[k] for k in whole} == whole
    assert (await world.http.put(path, json=whole, headers=seen)).status_code == 412
    for missing in whole:
        part = {k: v for k, v in whole.items() if k != missing}
        assert (await world.http.put(path, json=part, headers=plant.headers)).status_code == 422
    boss = (await world.users(plant))[plant.admin_email]
    demoted = {"name": "Boss", "roles": ["viewer"], "status": "active"}
    last = await world.http.put(f"/api/v1/users/{boss['id']}", json=demoted, headers=plant.headers)
    assert last.status_code == 409


async def test_users_are_found_by_name_address_role_and_status(world: World) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"a_1@{plant.slug}.example", name="Ann 100%")
    ben = await world.add_user(plant, f"ax1@{plant.slug}.example", name="Ben", roles=["viewer"])
    await world.http.patch(
        f"/api/v1/users/{ben['id']}", json={"status": "disabled"}, headers=plant.headers
    )
    await world.invite(plant, f"cy@{plant.slug}.example", name="Cy")

    async def found(**wanted: str) -> list[str]:
        answer = await world.http.get("/api/v1/users", params=wanted, headers=plant.headers)
        assert answer.status_code == 200, answer.text
        return [user["name"] for user in answer.json()["items"]]

    assert await found(q="ANN") == ["Ann 100%"]
    assert await found(q="0%") == ["Ann 100%"]
    # No character is a wildcard.
    assert await found(q="a_1@") == ["Ann 100%"]
    assert await found(q="%") == ["Ann 100%"]
    assert await found(role="operator") == ["Ann 100%", "Cy"]
    assert await found(role="operator", status="invited") == ["Cy"]
    assert await found(status="disabled") == ["Ben"]
    assert await found(q="nobody") == []
    page = {"limit": "1", "role": "operator"}
    first = (await world.http.get("/api/v1/users", params=page, headers=plant.headers)).json()
    assert [user["id"] for user in first["items"]] == [ann["id"]]
    assert await found(**page, cursor=first["next_cursor"]) == ["Cy"]
