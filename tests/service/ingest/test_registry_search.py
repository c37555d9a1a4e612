"""Devices are found: by a part of their name, by tags, groups, profiles, attributes and status."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World


async def make(world: World, path: str = "devices", **body: object) -> dict[str, Any]:
    if path == "devices":
        body = {"type": "pump", **body}
    answer = await world.http.post(f"/api/v1/{path}", json=body, headers=world.headers)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def found(world: World, query: str) -> list[str]:
    answer = await world.http.get(f"/api/v1/devices?{query}", headers=world.headers)
    assert answer.status_code == 200, answer.text
    return [item["name"] for item in answer.json()["items"]]


@pytest.fixture
async def plant(world: World) -> dict[str, Any]:
    """Two sites with a line, and devices in them."""
    north = await make(world, "device-groups", name="North", kind="site")
    line = await make(world, "device-groups", name="Line 1", kind="line", parent_id=north["id"])
    south = await make(world, "device-groups", name="South", kind="site")
    profile = await make(world, "device-profiles", name="press")
    await make(world, name="Press 1", group_id=line["id"], tags=["hot", "hall a"], serial="SN-77")
    await make(world, name="press 2", group_id=north["id"], tags=["hot"], profile_id=profile["id"])
    await make(world, name="Boiler", group_id=south["id"], type="boiler", tags=["hall a"])
    return {"north": north, "line": line, "south": south, "profile": profile}


async def test_a_part_of_a_name_or_serial_number_finds_in_any_case(
    world: World, plant: dict[str, Any]
) -> None:
    assert await found(world, "q=PRESS") == ["Press 1", "press 2"]
    assert await found(world, "q=ss 2") == ["press 2"]
    assert await found(world, "q=o") == ["Boiler"]
    assert await found(world, "q=sn") == ["Press 1"]
    assert await found(world, "q=n-7") == ["Press 1"]
    assert await found(world, "q=press%25") == []
    assert await found(world, "q=xyz") == []


async def test_what_looks_alike_is_found_and_stands_together_however_it_is_written(
    world: World,
) -> None:
    for name in ("zebra", "K\u00fchler 2", "Ku\u0308hler 1", "apple", "Bolt"):
        await make(world, name=name)
    for written in ("k\u00fchler", "KU\u0308HLER"):
        assert await found(world, f"q={written}&sort=name") == ["Ku\u0308hler 1", "K\u00fchler 2"]
        assert len(await found(world, f"q={written}")) == 2
    assert await found(world, "sort=name") == [
        "apple",
        "Bolt",
        "Ku\u0308hler 1",
        "K\u00fchler 2",
        "zebra",
    ]
    assert (await found(world, "sort=-name"))[0] == "zebra"


async def test_a_word_that_very_many_have_is_found_in_the_order_of_names(world: World) -> None:
    await world.query(
        "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
        " SELECT $1, gen_random_uuid(), 'Pump ' || lpad(n::text, 4, '0'), 'pump', now(), now()"
        " FROM generate_series(1, 600) n",
        world.tenant_id,
    )
    await make(world, name="a valve of PUMP 7")
    first = await found(world, "q=pump&sort=name&limit=3")
    assert first == ["a valve of PUMP 7", "Pump 0001", "Pump 0002"]
    assert await found(world, "q=p 0599&sort=name") == ["Pump 0599"]
    assert await found(world, "q=pump&sort=name&type=valve") == []
    assert await found(world, "q=pumpe&sort=name") == []


async def test_filters_narrow_each_other(world: World, plant: dict[str, Any]) -> None:
    assert await found(world, "tag=hot") == ["Press 1", "press 2"]
    assert await found(world, "tag=hot&tag=hall a") == ["Press 1"]
    assert await found(world, "any_tag=hot&any_tag=hall a") == ["Press 1", "press 2", "Boiler"]
    assert await found(world, "tag=ho") == []
    assert await found(world, "type=boiler") == ["Boiler"]
    assert await found(world, "type=boiler&tag=hot") == []
    assert await found(world, f"profile_id={plant['profile']['id']}") == ["press 2"]
    assert await found(world, "status=unknown&q=press") == ["Press 1", "press 2"]
    assert await found(world, "status=online") == []
    assert await found(world, "protocol=coap") == []


async def test_a_group_holds_what_is_below_it_also_after_it_moved(
    world: World, plant: dict[str, Any]
) -> None:
    north, line, south = (plant[name]["id"] for name in ("north", "line", "south"))
    assert await found(world, f"group_id={north}") == ["Press 1", "press 2"]
    assert await found(world, f"group_id={line}") == ["Press 1"]
    answer = await world.http.patch(
        f"/api/v1/device-groups/{line}", json={"parent_id": south}, headers=world.headers
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["path"] == [south, line]
    assert await found(world, f"group_id={north}") == ["press 2"]
    assert await found(world, f"group_id={south}") == ["Press 1", "Boiler"]


async def test_an_attribute_of_any_scope_finds(world: World, plant: dict[str, Any]) -> None:
    device = await make(world, name="valve")
    for scope, attributes in (("server", {"floor": 3}), ("shared", {"mode": "eco", "on": True})):
        answer = await world.http.patch(
            f"/api/v1/devices/{device['id']}/attributes/{scope}",
            json=attributes,
            headers=world.headers,
        )
        assert answer.status_code == 200, answer.text
    assert await found(world, "attribute=floor:3") == ["valve"]
    assert await found(world, "attribute=mode:eco&attribute=on:true&q=val") == ["valve"]
    assert await found(world, "attribute=floor:4") == []


@pytest.mark.parametrize("sort", ["name", "-name", "created_at", "-created_at", "-last_seen_at"])
async def test_pages_in_any_order_hold_every_device_once(world: World, sort: str) -> None:
    names = [f"{'dD'[number % 2]}{number:02}" for number in range(11)]
    for name in names:
        await make(world, name=name)
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await world.http.get(
            f"/api/v1/devices?sort={sort}&limit=4{cursor}", headers=world.headers
        )
        body = answer.json()
        seen += [item["name"] for item in body["items"]]
        if body["next_cursor"] is None:
            break
        cursor = f"&cursor={body['next_cursor']}"
    if sort.endswith("last_seen_at"):
        assert sorted(seen) == sorted(names)
    else:
        assert seen == (names[::-1] if sort.startswith("-") else names)
    other = await world.http.get(
        f"/api/v1/devices?limit=4&sort=name{cursor}", headers=world.headers
    )
    assert other.status_code == (200 if sort == "name" else 400)


async def test_nothing_of_another_tenant_is_found(
    world: World, plant: dict[str, Any], principal_headers: PrincipalHeaders
) -> None:
    world.headers = principal_headers(uuid4())
    for query in ("q=press", "tag=hot", f"group_id={plant['north']['id']}", "type=boiler", ""):
        assert await found(world, query) == []


async def test_the_search_looks_at_no_tenant_that_the_transaction_is_not_bound_to(
    world: World, plant: dict[str, Any]
) -> None:
    # Whoever gets hold of the service's role and names another tenant finds nothing either.
    rows = await world.as_service(
        uuid4(), "SELECT ingest.find_devices($1, '{}', 10)", world.tenant_id
    )
    assert rows == []
    rows = await world.as_service(
        world.tenant_id, "SELECT ingest.find_devices($1, '{}', 10) AS id", world.tenant_id
    )
    assert len(rows) == 3
    assert all(isinstance(row["id"], UUID) for row in rows)
