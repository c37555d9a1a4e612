"""For how long a tenant wants what kept."""

from uuid import uuid4

import pytest

from tests.service.retention.conftest import World


async def test_a_policy_is_made_changed_and_removed(world: World) -> None:
    policy = await world.keep(90)
    assert (policy["keep_days"], policy["keep"], policy["version"]) == (90, "P90D", 1)
    assert policy["is_enforced"] is True
    path = f"/policies/{policy['id']}"
    changed = await world.call("PUT", path, {"data_type": "telemetry", "keep": "P2W"})
    assert (changed.json()["keep_days"], changed.json()["version"]) == (14, 2)
    assert (await world.call("GET", path)).json() == changed.json()
    listed = (await world.call("GET", "/policies")).json()
    assert listed == {"items": [changed.json()], "next_cursor": None}
    assert (await world.call("DELETE", path)).status_code == 204
    assert (await world.call("GET", path)).status_code == 404


async def test_a_type_of_data_has_one_policy(world: World) -> None:
    policy = await world.keep(90)
    again = await world.call("POST", "/policies", {"data_type": "telemetry", "keep": 9})
    assert again.status_code == 409
    alerts = await world.call("POST", "/policies", {"data_type": "alerts", "keep": 9})
    assert (alerts.status_code, alerts.json()["is_enforced"]) == (201, False)
    moved = await world.call("PUT", f"/policies/{policy['id']}", {"data_type": "alerts", "keep": 9})
    assert (moved.status_code, moved.json()["errors"][0]["pointer"]) == (422, "#/data_type")


async def test_who_saw_an_older_version_changes_nothing(world: World) -> None:
    policy = await world.keep(90)
    path, body = f"/policies/{policy['id']}", {"data_type": "telemetry", "keep": 30}
    assert (await world.call("PUT", path, body, if_match='"1"')).status_code == 200
    assert (await world.call("PUT", path, body, if_match='"1"')).status_code == 412
    assert (await world.call("DELETE", path, if_match="1")).status_code == 412
    assert (await world.call("DELETE", path, if_match="2")).status_code == 204


@pytest.mark.parametrize(
    "keep",
    [
        0,
        -1,
        36_501,
        10**30,
        1.5,
        True,
        None,
        "PT36H",
        "P0D",
        "-P3D",
        "30",
        "a while",
        "P9999999999D",
    ],
)
async def test_a_time_that_is_no_number_of_days_is_refused(world: World, keep: object) -> None:
    refused = await world.call("POST", "/policies", {"data_type": "telemetry", "keep": keep})
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["pointer"] == "#/keep"


async def test_a_type_that_nobody_knows_is_refused(world: World) -> None:
    refused = await world.call("POST", "/policies", {"data_type": "dreams", "keep": 9})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/data_type")


async def test_another_tenants_policy_is_as_unknown_as_none_at_all(world: World) -> None:
    policy = await world.keep(90)
    other, body = uuid4(), {"data_type": "telemetry", "keep": 9}
    for method in ("GET", "PUT", "DELETE"):
        sent = body if method == "PUT" else None
        for an_id in (policy["id"], uuid4()):
            answer = await world.call(method, f"/policies/{an_id}", sent, tenant_id=other)
            assert answer.status_code == 404
    assert (await world.call("GET", "/policies", tenant_id=other)).json()["items"] == []


async def test_without_permission_nothing_is_told_or_done(world: World) -> None:
    headers = world.principal_headers(world.tenant_id, "retention:read")
    listed = await world.http.get("/api/v1/retention/policies", headers=headers)
    assert listed.status_code == 200
    run = await world.http.post("/api/v1/retention/run", json={}, headers=headers)
    assert run.status_code == 403
    headers = world.principal_headers(world.tenant_id, "devices:read")
    assert (await world.http.get("/api/v1/retention/policies", headers=headers)).status_code == 403
