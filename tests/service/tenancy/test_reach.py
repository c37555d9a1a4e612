"""Members may be limited to groups of devices; nobody hands out more than they have."""

from typing import Any
from uuid import UUID, uuid4

from tests.service.tenancy.conftest import World


async def test_nobody_hands_out_reach_beyond_their_own(world: World) -> None:
    plant = await world.plant()
    north, south = sorted((uuid4(), uuid4()))
    limited = world.principal_headers(plant.id, "*", groups=[north])

    async def ask(method: str, path: str, headers: dict[str, str], **body: Any) -> Any:
        return await world.http.request(
            method, f"/api/v1/{path}", json=body or None, headers=headers
        )

    def invited(groups: list[UUID] | None) -> dict[str, Any]:
        named = None if groups is None else [str(group) for group in groups]
        address = f"{uuid4()}@{plant.slug}.example"
        return {"email": address, "name": "Ann", "roles": ["viewer"], "device_groups": named}

    for groups, status in ((None, 403), ([south], 403), ([north, south], 403), ([north], 201)):
        answer = await ask("POST", "users", limited, **invited(groups))
        assert answer.status_code == status, answer.text
    assert (await ask("POST", "users", plant.headers, **invited([]))).status_code == 422

    email = f"ann@{plant.slug}.example"
    ann = await world.add_user(plant, email, device_groups=[str(north)])
    boss = (await world.users(plant))[plant.admin_email]
    assert ann["device_groups"] == [str(north)]
    assert boss["device_groups"] is None

    # The gateway learns of it with the account, and of a change by an event.
    account = (await world.log_in(email)).json()
    assert [m["device_groups"] for m in account["memberships"]] == [[str(north)]]
    path = f"users/{ann['id']}"
    widened = await ask("PATCH", path, plant.headers, device_groups=[str(south), str(north)])
    assert widened.json()["device_groups"] == [str(north), str(south)]
    said = [
        type_ for type_, body in await world.events(plant.id) if body.get("user_id") == ann["id"]
    ]
    assert said.count("membership.changed.v1") == 2

    # Who reaches further is not touched, in whatever way.
    for method, where, body in (
        ("PATCH", path, {"name": "Nobody"}),
        ("PATCH", path, {"device_groups": [str(north)]}),
        ("PUT", path, {"name": "Nobody", "roles": ["viewer"], "status": "disabled"}),
        ("POST", f"{path}/roles", {"roles": ["auditor"]}),
        ("DELETE", path, {}),
        ("DELETE", f"users/{boss['id']}", {}),
    ):
        answer = await ask(method, where, limited, **body)
        assert answer.status_code == 403, f"{method} {where} {body}: {answer.text}"
    assert (await ask("POST", "roles", limited, name="x", permissions=["*"])).status_code == 403

    # What is left out of a change stays; null lifts the limit.
    renamed = await ask("PATCH", path, plant.headers, name="Ann B.")
    assert renamed.json()["device_groups"] == [str(north), str(south)]
    replaced = await ask("PUT", path, plant.headers, name="Ann", roles=["viewer"], status="active")
    assert replaced.json()["device_groups"] == [str(north), str(south)]
    lifted = await ask("PATCH", path, plant.headers, device_groups=None)
    assert lifted.json()["device_groups"] is None

    # Somebody must be left who administers all of it.
    last = await ask("PATCH", f"users/{boss['id']}", plant.headers, device_groups=[str(north)])
    assert last.status_code == 409
