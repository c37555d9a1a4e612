"""Programs come in with API keys, which a tenant makes for itself."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2

from libs.common.auth.principal import Kind
from tests.service.tenancy.conftest import Plant, World

PATH = "/api/v1/api-keys"


async def make(world: World, plant: Plant, *scopes: str, **more: object) -> dict[str, Any]:
    """Make a key; return it, with its secret."""
    body = {"name": "historian export", "scopes": scopes or ["devices:read"], **more}
    made = await world.http.post(PATH, json=body, headers=plant.headers)
    assert made.status_code == 201, made.text
    key: dict[str, Any] = made.json()
    return key


async def find(world: World, key: str) -> httpx2.Response:
    """Ask as the gateway does when somebody shows a key."""
    return await world.http.post(
        "/internal/v1/api-keys/find",
        json={"hash": hashlib.sha256(key.encode()).hexdigest()},
        headers=world.gateway,
    )


def of_key(world: World, plant: Plant, key: dict[str, Any]) -> dict[str, str]:
    """Return the headers of a request that a key makes."""
    return world.principal_headers(
        plant.id, *key["scopes"], subject=UUID(key["id"]), kind=Kind.API_KEY
    )


async def test_the_life_of_a_key(world: World) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"ann@{plant.slug}.example", roles=["admin"])
    plant.headers = world.principal_headers(plant.id, "*", subject=UUID(ann["id"]))
    group = str(uuid4())
    end = datetime.now(UTC) + timedelta(days=30)
    made = await make(
        world,
        plant,
        "telemetry:*",
        allowed_networks=["192.0.2.0/24", "2001:db8::/32"],
        device_groups=[group],
        expires_at=end.isoformat(),
    )
    assert made["key"].startswith(f"{made['handle']}_")

    # Listed it is without its secret; of who made it the tenant sees its own name.
    (listed,) = (await world.http.get(PATH, headers=plant.headers)).json()["items"]
    assert listed == {k: v for k, v in made.items() if k != "key"}
    assert (listed["created_by"], listed["created_by_name"]) == (ann["id"], "Ann")
    kept = await world.query(
        "SELECT t::text FROM tenancy.api_keys t WHERE tenant_id = $1", plant.id
    )
    assert made["key"] not in str(kept)

    found = (await find(world, made["key"])).json()
    assert found == {
        "tenant_id": str(plant.id),
        "key_id": made["id"],
        "scopes": ["telemetry:*"],
        "allowed_networks": ["192.0.2.0/24", "2001:db8::/32"],
        "device_groups": [group],
        "tenant_plan": "unlimited",
        "good_until": listed["expires_at"],
    }

    # It goes on when its maker leaves.
    boss = world.principal_headers(plant.id, "*")
    left = await world.http.delete(f"/api/v1/users/{ann['id']}", headers=boss)
    assert left.status_code == 204, left.text
    one = (await world.http.get(f"{PATH}/{made['id']}", headers=boss)).json()
    assert (one["created_by"], one["created_by_name"]) == (ann["id"], None)
    assert (await find(world, made["key"])).status_code == 200

    # Null lifts a limit; what is left out stays; the version that was seen makes it conditional.
    lifted = {"name": "export", "expires_at": None, "allowed_networks": None}
    stale = await world.http.patch(
        f"{PATH}/{made['id']}", json=lifted, headers={**boss, "if-match": '"7"'}
    )
    assert stale.status_code == 412
    changed = await world.http.patch(
        f"{PATH}/{made['id']}", json=lifted, headers={**boss, "if-match": '"1"'}
    )
    assert changed.status_code == 200, changed.text
    found = (await find(world, made["key"])).json()
    assert (found["good_until"], found["allowed_networks"]) == (None, [])
    assert found["device_groups"] == [group]

    assert (await world.http.delete(f"{PATH}/{made['id']}", headers=boss)).status_code == 204
    assert (await find(world, made["key"])).status_code == 404
    said = [t for t, _ in await world.events(plant.id) if t.startswith("api_key.")]
    assert said == ["api_key.created.v1", "api_key.changed.v1", "api_key.revoked.v1"]


async def test_rotated_both_secrets_are_good_for_the_overlap_and_then_the_new_one_alone(
    world: World,
) -> None:
    plant = await world.plant()
    first = await make(world, plant)
    path = f"{PATH}/{first['id']}/rotate"

    async def rotate(overlap: str) -> dict[str, Any]:
        answer = await world.http.post(path, json={"overlap": overlap}, headers=plant.headers)
        assert answer.status_code == 201, answer.text
        rotated: dict[str, Any] = answer.json()
        return rotated

    second = await rotate("P1D")
    assert (second["id"], second["handle"]) == (first["id"], first["handle"])
    assert second["key"] != first["key"]
    assert (await find(world, first["key"])).json()["good_until"] == second["overlap_until"]
    assert (await find(world, second["key"])).json()["good_until"] is None
    # Of three secrets the oldest is void; with no overlap the one before is as well.
    third = await rotate("PT0S")
    statuses = [(await find(world, k["key"])).status_code for k in (first, second, third)]
    assert statuses == [404, 404, 200]
    too_long = await world.http.post(path, json={"overlap": "P8D"}, headers=plant.headers)
    assert too_long.status_code == 422


async def test_nobody_hands_out_with_a_key_what_they_do_not_hold(world: World) -> None:
    plant = await world.plant()
    strong = await make(world, plant, "users:write")
    mine, other = uuid4(), uuid4()
    keeper = world.principal_headers(plant.id, "api_keys:write", "devices:*")
    limited = world.principal_headers(plant.id, "api_keys:write", "devices:*", groups={mine})

    async def try_to_make(headers: dict[str, str], **more: object) -> int:
        body = {"name": "k", "scopes": ["devices:read"], **more}
        return (await world.http.post(PATH, json=body, headers=headers)).status_code

    assert await try_to_make(keeper) == 201
    assert await try_to_make(keeper, scopes=["devices:read", "users:read"]) == 403
    assert await try_to_make(limited) == 403
    assert await try_to_make(limited, device_groups=[str(mine), str(other)]) == 403
    assert await try_to_make(limited, device_groups=[str(mine)]) == 201
    # Nor do they touch a key that may more than they: its holder would get it from them.
    path = f"{PATH}/{strong['id']}"
    for headers in (keeper, limited):
        for answer in (
            await world.http.patch(path, json={"name": "mine"}, headers=headers),
            await world.http.post(f"{path}/rotate", json={}, headers=headers),
            await world.http.delete(path, headers=headers),
        ):
            assert answer.status_code == 403, answer.text


async def test_a_key_manages_no_key_but_itself(world: World) -> None:
    plant = await world.plant()
    key, other = await make(world, plant, "*"), await make(world, plant)
    headers = of_key(world, plant, key)
    body = {"name": "another", "scopes": ["devices:read"]}
    assert (await world.http.post(PATH, json=body, headers=headers)).status_code == 403
    for id_, rotated, revoked in ((other["id"], 403, 403), (key["id"], 201, 204)):
        path = f"{PATH}/{id_}"
        lifted = await world.http.patch(path, json={"expires_at": None}, headers=headers)
        assert lifted.status_code == 403
        answer = await world.http.post(f"{path}/rotate", json={}, headers=headers)
        assert answer.status_code == rotated
        assert (await world.http.delete(path, headers=headers)).status_code == revoked


async def test_another_tenants_key_looks_like_none(world: World) -> None:
    mine, theirs = await world.plant(), await world.plant()
    key = await make(world, theirs)
    answers = []
    for id_ in (key["id"], str(uuid4())):
        path = f"{PATH}/{id_}"
        got = [
            await world.http.get(path, headers=mine.headers),
            await world.http.patch(path, json={"name": "x"}, headers=mine.headers),
            await world.http.post(f"{path}/rotate", json={}, headers=mine.headers),
            await world.http.delete(path, headers=mine.headers),
        ]
        assert [a.status_code for a in got] == [404] * 4
        answers.append([str(a.json() | {"request_id": None}).replace(id_, "ID") for a in got])
    assert answers[0] == answers[1]
    assert (await world.http.get(PATH, headers=mine.headers)).json()["items"] == []


async def test_what_no_key_can_be_is_refused(world: World) -> None:
    plant = await world.plant()
    past = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    for wrong, pointer in (
        ({"scopes": ["devices:explode"]}, "#/scopes/0"),
        ({"scopes": ["platform:admin"]}, "#/scopes/0"),
        ({"scopes": []}, "#/scopes"),
        ({"expires_at": past}, "#/expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "#/expires_at"),
        ({"allowed_networks": ["192.0.2.1/24"]}, "#/allowed_networks/0"),
        ({"device_groups": []}, "#/device_groups"),
        ({"name": "a\nb"}, "#/name"),
    ):
        body = {"name": "k", "scopes": ["devices:read"], **wrong}
        answer = await world.http.post(PATH, json=body, headers=plant.headers)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
    world.app.state.api_keys_per_tenant = 1
    await make(world, plant)
    body = {"name": "one more", "scopes": ["devices:read"]}
    assert (await world.http.post(PATH, json=body, headers=plant.headers)).status_code == 409


async def test_a_key_opens_nothing_of_a_tenant_that_is_suspended(world: World) -> None:
    plant = await world.plant()
    key = await make(world, plant)
    path = f"/api/v1/tenants/{plant.id}"
    for status, expected in (("suspended", 404), ("active", 200)):
        await world.http.patch(path, json={"status": status}, headers=world.platform)
        assert (await find(world, key["key"])).status_code == expected


async def test_when_keys_were_used_last_is_shown(world: World) -> None:
    plant, other = await world.plant(), await world.plant()
    key, theirs = await make(world, plant), await make(world, other)
    now = datetime.now(UTC)

    async def note(*uses: tuple[Plant, str, datetime, str]) -> None:
        body = [
            {"tenant_id": str(p.id), "key_id": id_, "at": at.isoformat(), "address": address}
            for p, id_, at, address in uses
        ]
        answer = await world.http.post(
            "/internal/v1/api-keys/uses", json={"uses": body}, headers=world.gateway
        )
        assert answer.status_code == 204, answer.text

    await note(
        (plant, key["id"], now, "192.0.2.7"),
        (other, theirs["id"], now, "192.0.2.8"),
        (plant, str(uuid4()), now, "192.0.2.9"),  # revoked meanwhile
    )
    # A replica that tells late does not turn the clock back.
    await note((plant, key["id"], now - timedelta(minutes=1), "192.0.2.6"))
    for tenant, address in ((plant, "192.0.2.7"), (other, "192.0.2.8")):
        (listed,) = (await world.http.get(PATH, headers=tenant.headers)).json()["items"]
        assert datetime.fromisoformat(listed["last_used_at"]) == now
        assert (listed["last_used_address"], listed["version"]) == (address, 1)
