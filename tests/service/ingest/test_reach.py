"""Who is limited to a site has to do with its devices, and with what is below it, and nothing else."""

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from libs.common.events.ingest import DevicesPlaced
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until


@pytest.fixture
async def plant(world: World) -> dict[str, Any]:
    """North with a line, and South; a press in each of the three, and one that is in no group."""
    things: dict[str, Any] = {}

    async def make(name: str, path: str, **body: object) -> None:
        answer = await world.http.post(
            f"/api/v1/{path}", json={"name": name, **body}, headers=world.headers
        )
        assert answer.status_code == 201, answer.text
        things[name] = answer.json()["id"]

    await make("north", "device-groups", kind="site")
    await make("line", "device-groups", parent_id=things["north"])
    await make("south", "device-groups", kind="site")
    await make("north press", "devices", type="press", group_id=things["north"])
    await make("line press", "devices", type="press", group_id=things["line"])
    await make("south press", "devices", type="press", group_id=things["south"])
    await make("loose press", "devices", type="press")
    await make("profile", "device-profiles")
    return things


async def test_of_a_plant_one_sees_and_changes_what_lies_in_ones_reach(
    world: World, plant: dict[str, Any], principal_headers: PrincipalHeaders
) -> None:
    mine = principal_headers(world.tenant_id, groups=[UUID(plant["north"])])

    async def ask(method: str, path: str, **body: Any) -> Any:
        return await world.http.request(method, f"/api/v1/{path}", json=body or None, headers=mine)

    async def names(path: str) -> set[str]:
        return {item["name"] for item in (await ask("GET", path)).json()["items"]}

    assert await names("devices") == {"north press", "line press"}
    assert await names("devices?q=press&limit=1&sort=name") == {"line press"}
    assert await names("device-groups") == {"north", "line"}
    assert await names(f"devices?group_id={plant['south']}") == set()
    exported = (await ask("GET", "devices/export")).text
    assert "line press" in exported
    assert "south" not in exported
    assert "loose" not in exported

    # What lies elsewhere is as if it never was.
    for device in ("south press", "loose press"):
        for method, path in (
            ("GET", ""),
            ("PATCH", "?"),
            ("DELETE", ""),
            ("GET", "/credentials"),
            ("GET", "/attributes"),
            ("GET", "/ledger"),
            ("POST", "/commands?"),
            ("POST", "/claim-token"),
        ):
            body = {"name": "x"} if path.endswith("?") else {}
            known = await ask(method, f"devices/{plant[device]}{path}", **body)
            unknown = await ask(method, f"devices/{uuid4()}{path}", **body)
            assert known.status_code == unknown.status_code == 404, f"{method} {path} {known.text}"
    said = {"values": {"temp": 20.5}}
    assert (await ask("POST", "telemetry", device_id=plant["line press"], **said)).is_success
    theirs = {**said, "device_id": plant["south press"]}
    # Also when others have just spoken for it, and the process knows it.
    for headers, status in ((mine, 404), (world.headers, 202), (mine, 404)):
        answer = await world.http.post("/api/v1/telemetry", json=theirs, headers=headers)
        assert answer.status_code == status, answer.text

    # New things are within reach, and nothing leaves or enters it.
    made = {"name": "new press", "type": "press"}
    assert (await ask("POST", "devices", **made)).status_code == 403
    assert (await ask("POST", "devices", **made, group_id=plant["south"])).status_code == 404
    assert (await ask("POST", "devices", **made, group_id=plant["line"])).status_code == 201
    press = f"devices/{plant['line press']}"
    assert (await ask("PATCH", press, group_id=None)).status_code == 403
    assert (await ask("PATCH", press, group_id=plant["south"])).status_code == 404
    assert (await ask("PATCH", press, group_id=plant["north"])).status_code == 200
    groups = "device-groups"
    assert (await ask("POST", groups, name="site")).status_code == 403
    assert (await ask("POST", groups, name="x", parent_id=plant["south"])).status_code == 404
    assert (await ask("POST", groups, name="cell", parent_id=plant["line"])).status_code == 201
    for parent in (None, plant["line"]):
        answer = await ask("PATCH", f"{groups}/{plant['north']}", parent_id=parent)
        assert answer.status_code == 403
    assert (await ask("PATCH", f"{groups}/{plant['line']}", parent_id=None)).status_code == 403
    assert (await ask("DELETE", f"{groups}/{plant['north']}")).status_code == 403

    # What all share is read, and not changed; what names others' devices is not even read.
    assert await names("device-profiles") == {"profile"}
    assert (await ask("PATCH", f"device-profiles/{plant['profile']}", name="y")).status_code == 403
    assert (await ask("PUT", "devices/policy", plain_coap=True)).status_code == 403
    assert (await ask("GET", "connectors")).json()["items"] == []
    key = {"name": "key", "device_type": "press"}
    assert (await ask("POST", "provisioning-keys", **key)).status_code == 403
    in_reach = await ask("POST", "provisioning-keys", **key, group_id=plant["line"])
    assert in_reach.status_code == 201, in_reach.text


async def test_a_sheet_is_read_from_where_ones_reach_begins(
    world: World, plant: dict[str, Any], principal_headers: PrincipalHeaders
) -> None:
    sheet = (
        "name,type,group\nmine,press,line/cell 2\nloose,press,\nsouth press,press,line\n"
        "theirs,press,south\n"
    )
    answer = await world.http.post(
        "/api/v1/devices/import",
        content=sheet,
        headers={
            **principal_headers(world.tenant_id, groups=[UUID(plant["line"])]),
            "content-type": "text/csv",
        },
    )
    assert answer.status_code == 200, answer.text
    rows = await world.query(
        "SELECT name, group_id FROM ingest.devices WHERE tenant_id = $1 AND name = 'mine'",
        world.tenant_id,
    )
    assert len(rows) == 1
    assert answer.text.count("none of the groups") == 2
    assert "there is a device of this name already" in answer.text


async def test_where_devices_are_is_kept_by_the_historian_and_said(
    world: World, plant: dict[str, Any]
) -> None:
    """A device's own move, and that of a group above it, by whatever way they come."""

    async def place(device: str) -> list[str]:
        rows = await world.query(
            "SELECT groups FROM historian.device_places WHERE device_id = $1", UUID(plant[device])
        )
        return [str(group) for row in rows for group in row["groups"]]

    async def said(device: str) -> list[str]:
        rows = await world.query(
            "SELECT convert_from(body, 'utf8')::jsonb -> 'places' AS places FROM bus.log"
            " WHERE tenant_id = $1 AND type = $2 ORDER BY position DESC",
            world.tenant_id,
            DevicesPlaced.type,
        )
        for row in rows:
            for one in json.loads(row["places"]):
                if plant[device] in one["device_ids"]:
                    return list(one["groups"])
        return []

    line, north, south = plant["line"], plant["north"], plant["south"]
    assert await place("line press") == [north, line]
    assert await place("loose press") == []
    moved = await world.http.patch(
        f"/api/v1/device-groups/{line}", json={"parent_id": south}, headers=world.headers
    )
    assert moved.status_code == 200, moved.text
    assert await place("line press") == [south, line]
    await world.http.patch(
        f"/api/v1/devices/{plant['south press']}", json={"group_id": None}, headers=world.headers
    )
    assert await place("south press") == []

    async def is_said() -> bool:
        return await said("line press") == [south, line]

    await until(is_said, "the move of what is below a group is said")
    unsaid = "SELECT FROM ingest.placements WHERE tenant_id = $1"

    async def all_is_said() -> bool:
        return not await world.query(unsaid, world.tenant_id)

    await until(all_is_said, "nothing is left to be said")
    assert await said("south press") == []


async def test_the_database_itself_refuses_what_the_program_forgot_to(
    world: World, plant: dict[str, Any]
) -> None:
    connection = await asyncpg.connect(world.urls.rw("ingest"))
    try:
        for groups, expected in (("", 4), (f"{{{plant['north']}}}", 2), ("{}", 0)):
            async with connection.transaction():
                await connection.execute(
                    "SELECT set_config('app.tenant_ids', $1, true),"
                    " set_config('app.groups', $2, true)",
                    f"{{{world.tenant_id}}}",
                    groups,
                )
                for table in ("devices", "contacts", "credentials", "device_terms"):
                    count = await connection.fetchval(f"SELECT count(*) FROM ingest.{table}")
                    assert count == expected, table
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "SELECT set_config('app.tenant_ids', $1, true), set_config('app.groups', $2, true)",
            f"{{{world.tenant_id}}}",
            f"{{{plant['north']}}}",
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            await connection.execute(
                "UPDATE ingest.devices SET group_id = $1 WHERE name = 'line press'",
                UUID(plant["south"]),
            )
        await transaction.rollback()
    finally:
        await connection.close()
