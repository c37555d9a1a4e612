"""How devices come and go: by themselves, by a label, by a sheet; removed, restored, erased."""

import base64
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.db.engine import Database
from services.ingest.settings import Settings
from services.ingest.store.devices import Removed
from services.ingest.usecases.devices import purge
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"claim_url": "https://plant.example/claim"})


async def ask(
    world: World, method: str, path: str, status: int, json: object = None, **headers: str
) -> Any:
    answer = await world.http.request(
        method, f"/api/v1/{path}", json=json, headers={**world.headers, **headers}
    )
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def provision(world: World, status: int, **body: object) -> Any:
    answer = await world.http.post("/api/v1/devices/provision", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def send(world: World, token: str) -> int:
    answer = await world.http.post(
        "/api/v1/telemetry",
        json={"values": {"temp": 1}},
        headers={"authorization": f"Bearer {token}"},
    )
    return answer.status_code


async def test_a_device_registers_itself_with_its_makers_key(world: World) -> None:
    group = await ask(world, "POST", "device-groups", 201, {"name": "Hall", "kind": "site"})
    made = await ask(
        world,
        "POST",
        "provisioning-keys",
        201,
        {"name": "meters", "device_type": "meter", "group_id": group["id"], "tags": ["new"]},
    )
    body = await provision(world, 201, key=made["key"], serial="M-1")
    assert await send(world, body["credentials"]["token"]) == 202
    device = await ask(world, "GET", f"devices/{body['id']}", 200)
    assert (device["name"], device["serial"], device["type"]) == ("M-1", "M-1", "meter")
    assert (device["group_id"], device["tags"]) == (group["id"], ["new"])
    listed = await world.http.get("/api/v1/provisioning-keys", headers=world.headers)
    assert listed.json()["items"][0]["devices"] == 1
    assert made["key"] not in listed.text


async def test_a_device_that_lost_the_answer_may_ask_again_until_it_was_heard(
    world: World,
) -> None:
    made = await ask(
        world, "POST", "provisioning-keys", 201, {"name": "meters", "device_type": "meter"}
    )
    first = await provision(world, 201, key=made["key"], serial="M-1")
    again = await provision(world, 201, key=made["key"], serial="M-1")
    assert again["id"] == first["id"]

    async def is_void() -> bool:
        return await send(world, first["credentials"]["token"]) == 401

    await until(is_void, "the first token is void")
    await world.query(
        "UPDATE ingest.contacts SET seen_at = now() WHERE device_id = $1", UUID(first["id"])
    )
    await provision(world, 409, key=made["key"], serial="M-1")
    # One that somebody registered by hand is nobody's to take over.
    await ask(world, "POST", "devices", 201, {"name": "x", "type": "y", "serial": "M-2"})
    await provision(world, 409, key=made["key"], serial="M-2")


async def test_a_key_that_is_not_good_lets_nobody_in(world: World) -> None:
    wrong = await provision(world, 401, key="iiotp_nonsense", serial="M-1")
    assert "devices" not in wrong
    made = await ask(
        world,
        "POST",
        "provisioning-keys",
        201,
        {"name": "two", "device_type": "meter", "max_devices": 1},
    )
    path = f"provisioning-keys/{made['id']}"
    await provision(world, 201, key=made["key"], serial="M-1")
    await provision(world, 409, key=made["key"], serial="M-2")
    await ask(world, "PATCH", path, 200, {"max_devices": 5, "is_enabled": False})
    await provision(world, 403, key=made["key"], serial="M-2")
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await ask(world, "PATCH", path, 200, {"is_enabled": True, "expires_at": over})
    await provision(world, 403, key=made["key"], serial="M-2")
    await ask(world, "DELETE", path, 204)
    await provision(world, 401, key=made["key"], serial="M-2")


async def test_whoever_guesses_keys_must_wait_and_good_keys_pass(
    world: World,
) -> None:
    made = await ask(
        world, "POST", "provisioning-keys", 201, {"name": "good", "device_type": "meter"}
    )
    await provision(world, 201, key=made["key"], serial="M-0")
    answers = []
    for number in range(80):
        answer = await world.http.post(
            "/api/v1/devices/provision", json={"key": f"iiotp_{number}", "serial": "x"}
        )
        answers.append(answer)
    assert {answer.status_code for answer in answers} == {401, 429}
    assert "retry-after" in answers[-1].headers
    await provision(world, 201, key=made["key"], serial="M-1")


async def test_a_device_is_claimed_by_its_label_once(world: World) -> None:
    device_id, before = await world.device()
    label = await ask(world, "POST", f"devices/{device_id}/claim-token", 201)
    assert label["url"] == f"https://plant.example/claim#{label['claim_token']}"
    assert label["svg"].startswith("<svg")
    assert base64.b64decode(label["png"]).startswith(b"\x89PNG")
    assert (await ask(world, "GET", f"devices/{device_id}", 200))["is_claimed"] is False
    (row,) = await world.query("SELECT * FROM ingest.claims WHERE device_id = $1", device_id)
    assert label["claim_token"].encode() not in row["token_hash"]
    group = await ask(world, "POST", "device-groups", 201, {"name": "Hall"})
    claimed = await ask(
        world,
        "POST",
        "devices/claim",
        201,
        {"claim_token": label["claim_token"], "name": "Pump 7", "group_id": group["id"]},
    )
    assert (claimed["id"], claimed["name"]) == (str(device_id), "Pump 7")
    assert (claimed["group_id"], claimed["is_claimed"]) == (group["id"], True)
    assert await send(world, claimed["token"]) == 202
    assert await send(world, before) == 401
    await ask(world, "POST", "devices/claim", 404, {"claim_token": label["claim_token"]})


async def test_a_label_that_has_expired_or_was_replaced_or_is_anothers_claims_nothing(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    path = f"devices/{device_id}/claim-token"
    old = await ask(world, "POST", path, 201)
    new = await ask(world, "POST", path, 201, {"lasts": 60})
    await ask(world, "POST", "devices/claim", 404, {"claim_token": old["claim_token"]})
    mine, world.headers = world.headers, principal_headers(uuid4())
    await ask(world, "POST", "devices/claim", 404, {"claim_token": new["claim_token"]})
    world.headers = mine
    await world.query(
        "UPDATE ingest.claims SET expires_at = now() - interval '1 s' WHERE device_id = $1",
        device_id,
    )
    await ask(world, "POST", "devices/claim", 409, {"claim_token": new["claim_token"]})


SHEET = """\
name,type,serial,profile,group,tags,attributes
Press 1,press,S-1,press,North/Line 1,hot;new,"{""floor"": 3}"
Press 2,press,S-1,,North/Line 1,,
,press,,,,,
'=cmd,press,S-3,,,,
Press 4,press,,nobody,,,
Press 5,press,,,,,not json
taken,press,,,,,
"""


async def import_sheet(world: World, sheet: str, query: str = "") -> list[dict[str, str]]:
    answer = await world.http.post(
        f"/api/v1/devices/import{query}",
        content=sheet.encode(),
        headers={**world.headers, "content-type": "text/csv"},
    )
    assert answer.status_code == 200, answer.text
    return list(csv.DictReader(io.StringIO(answer.text)))


async def test_good_rows_of_a_sheet_are_taken_and_bad_ones_named(world: World) -> None:
    await ask(world, "POST", "device-profiles", 201, {"name": "press"})
    await ask(world, "POST", "devices", 201, {"name": "taken", "type": "x"})
    dry = await import_sheet(world, SHEET, "?dry_run=true")
    assert [(row["line"], bool(row["error"])) for row in dry] == [
        ("2", False),
        ("3", True),
        ("4", True),
        ("5", False),
        ("6", True),
        ("7", True),
        ("8", True),
    ]
    assert {row["token"] for row in dry} == {""}
    assert (await world.http.get("/api/v1/device-groups", headers=world.headers)).json()[
        "items"
    ] == []

    rows = await import_sheet(world, SHEET)
    assert [row["error"] for row in rows] == [row["error"] for row in dry]
    first, formula = rows[0], rows[3]
    assert formula["name"] == "'=cmd"
    assert await send(world, first["token"]) == 202
    device = await ask(world, "GET", f"devices/{first['device_id']}", 200)
    assert (device["serial"], sorted(device["tags"])) == ("S-1", ["hot", "new"])
    found = await world.http.get("/api/v1/devices?attribute=floor:3", headers=world.headers)
    assert [item["name"] for item in found.json()["items"]] == ["Press 1"]
    again = await import_sheet(world, SHEET)
    assert all(row["error"] for row in again)


async def test_a_sheet_brings_a_tree_of_hundreds_of_groups_and_all_its_devices(
    world: World,
) -> None:
    count = 300
    lines = [f'd{n},pump,SN-{n},Site {n}/Hall {n},"{{""n"": {n}}}"' for n in range(count)]
    rows = await import_sheet(world, "name,type,serial,group,attributes\n" + "\n".join(lines))
    assert not any(row["error"] for row in rows)
    (groups,) = await world.query(
        "SELECT count(*), count(DISTINCT path[1]) AS roots FROM ingest.device_groups"
        " WHERE tenant_id = $1",
        world.tenant_id,
    )
    assert (groups["count"], groups["roots"]) == (2 * count, count)
    found = await ask(world, "GET", "devices?attribute=n:299&q=sn-299", 200)
    assert [item["name"] for item in found["items"]] == ["d299"]
    path = await ask(world, "GET", f"device-groups/{found['items'][0]['group_id']}", 200)
    assert (path["name"], len(path["path"])) == ("Hall 299", 2)


async def test_what_is_exported_can_be_imported_elsewhere(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    await ask(world, "POST", "device-profiles", 201, {"name": "press"})
    await import_sheet(world, SHEET)
    exported = await world.http.get("/api/v1/devices/export", headers=world.headers)
    assert exported.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert {row["name"] for row in rows} == {"Press 1", "'=cmd", "taken"}
    assert {row["group"] for row in rows} == {"North/Line 1", ""}
    world.headers = principal_headers(uuid4())
    await ask(world, "POST", "device-profiles", 201, {"name": "press"})
    assert not any(row["error"] for row in await import_sheet(world, exported.text))
    there = await world.http.get("/api/v1/devices", headers=world.headers)
    assert {item["name"] for item in there.json()["items"]} == {"Press 1", "=cmd", "taken"}


@pytest.mark.parametrize(
    "sheet", ["", "name\nx\n", "name,type,color\n", "name,type,name\n", "\xff"]
)
async def test_what_is_no_sheet_is_refused_whole(world: World, sheet: str) -> None:
    answer = await world.http.post(
        "/api/v1/devices/import",
        content=sheet.encode("latin-1"),
        headers={**world.headers, "content-type": "text/csv"},
    )
    assert answer.status_code in (400, 422), answer.text


async def test_a_removed_device_frees_its_name_and_can_be_restored(world: World) -> None:
    device_id, token = await world.device("pump 1")
    await ask(world, "PATCH", f"devices/{device_id}/attributes/server", 200, {"floor": 2})
    await ask(world, "DELETE", f"devices/{device_id}", 204)
    await ask(world, "GET", f"devices/{device_id}", 404)
    assert await send(world, token) == 401
    removed = await ask(world, "GET", "devices?deleted=true", 200)
    assert [item["id"] for item in removed["items"]] == [str(device_id)]
    assert (await ask(world, "GET", "devices", 200))["items"] == []
    other, _ = await world.device("pump 1")
    await ask(world, "POST", f"devices/{device_id}/restore", 409)
    await ask(world, "PATCH", f"devices/{other}", 200, {"name": "pump 2"})
    await ask(world, "POST", f"devices/{device_id}/restore", 200)
    await ask(world, "POST", f"devices/{device_id}/restore", 409)
    assert await ask(world, "GET", f"devices/{device_id}/attributes/server", 200) == {"floor": 2}
    assert await send(world, token) == 401
    given = await ask(world, "POST", f"devices/{device_id}/credentials", 201)
    assert await send(world, given["token"]) == 202


async def test_what_was_removed_long_ago_is_erased(world: World) -> None:
    device_id, _ = await world.device()
    other, _ = await world.device()
    await ask(world, "PATCH", f"devices/{device_id}/attributes/server", 200, {"floor": 2})
    for removed in (device_id, other):
        await ask(world, "DELETE", f"devices/{removed}", 204)
    await world.query(
        "UPDATE ingest.devices SET deleted_at = now() - interval '31 days' WHERE id = $1",
        device_id,
    )
    engine = Database(world.urls.engine("ingest"), across_tenants=True)
    try:
        await purge(Removed(engine), world.app.state.transactions, timedelta(days=30))
    finally:
        await engine.close()
    await ask(world, "POST", f"devices/{device_id}/restore", 404)
    await ask(world, "POST", f"devices/{other}/restore", 200)
    for table in ("device_attributes", "device_terms", "contacts"):
        assert not await world.query(
            f"SELECT FROM ingest.{table} WHERE device_id = $1",
            device_id,
        )


async def test_what_goes_with_something_that_is_erased_is_found_by_an_index(world: World) -> None:
    unfound = await world.query(
        """
        SELECT conname FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
        WHERE nspname = 'ingest' AND contype = 'f' AND confdeltype = 'c' AND NOT EXISTS (
          SELECT FROM pg_index i WHERE i.indrelid = k.conrelid AND i.indpred IS NULL
            AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
        """
    )
    assert unfound == []


async def test_the_device_reads_what_is_shared_with_it_and_nothing_else(world: World) -> None:
    device_id, token = await world.device()
    path = f"devices/{device_id}/attributes"
    await ask(world, "PATCH", f"{path}/server", 200, {"secret": "of ours"})
    await ask(world, "PATCH", f"{path}/shared", 200, {"interval": 5, "mode": {"night": True}})
    await ask(world, "PATCH", f"{path}/shared", 200, {"interval": None, "mode": {"day": 1}})
    own = {"authorization": f"Bearer {token}"}
    answer = await world.http.patch(
        "/api/v1/devices/me/attributes", json={"firmware": "1.2.3", "old": 1}, headers=own
    )
    assert answer.status_code == 204, answer.text
    await world.http.patch("/api/v1/devices/me/attributes", json={"old": None}, headers=own)
    seen = await world.http.get("/api/v1/devices/me/attributes", headers=own)
    assert seen.json() == {
        "shared": {"mode": {"night": True, "day": 1}},
        "client": {"firmware": "1.2.3"},
    }
    assert await ask(world, "GET", f"{path}/client", 200) == {"firmware": "1.2.3"}
    await ask(world, "PATCH", f"{path}/client", 409, {"firmware": "2"})
    await ask(world, "PATCH", f"{path}/shared", 422, {"x": "y" * 5000})
    await ask(world, "PATCH", f"{path}/shared", 422, {f"n{i}": i for i in range(101)})
    await ask(world, "PATCH", f"{path}/shared", 422, {"x": "a\0b"})


async def test_groups_have_no_circles_and_a_bottom(world: World) -> None:
    above: dict[str, Any] = await ask(world, "POST", "device-groups", 201, {"name": "0"})
    root = above
    for level in range(1, 10):
        above = await ask(
            world, "POST", "device-groups", 201, {"name": str(level), "parent_id": above["id"]}
        )
    assert len(above["path"]) == 10
    await ask(world, "POST", "device-groups", 409, {"name": "11", "parent_id": above["id"]})
    await ask(world, "PATCH", f"device-groups/{root['id']}", 409, {"parent_id": above["id"]})
    other = await ask(world, "POST", "device-groups", 201, {"name": "other"})
    await ask(world, "PATCH", f"device-groups/{root['id']}", 409, {"parent_id": other["id"]})
    await ask(world, "DELETE", f"device-groups/{root['id']}", 409)
    await ask(world, "DELETE", f"device-groups/{above['id']}", 204)
    await ask(world, "POST", "device-groups", 409, {"name": "other"})
