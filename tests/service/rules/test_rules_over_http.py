"""Rules as people make them."""

from uuid import uuid4

import pytest

from tests.service.rules.conftest import World, a_rule


async def test_a_rule_is_made_read_changed_and_deleted(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    made = await world.call(tenant, "POST", "", a_rule(device, **{"for": "PT1M30S"}))
    assert made.status_code == 201, made.text
    rule = made.json()
    assert {k: v for k, v in rule.items() if k not in ("id", "created_at", "updated_at")} == {
        "name": "bearing too hot",
        "type": "threshold",
        "device_id": str(device),
        "metric": "temp",
        "condition": {"operator": "gt", "value": 90.0, "clear_value": 80.0},
        "for": 90.0,
        "severity": "critical",
        "enabled": True,
        "version": 1,
    }
    path = f"/{rule['id']}"
    assert (await world.call(tenant, "GET", path)).json() == rule
    change = a_rule(device, name="warm", condition={"operator": "gte", "value": 60})
    changed = await world.call(tenant, "PUT", path, change)
    assert changed.status_code == 200, changed.text
    assert (changed.json()["name"], changed.json()["for"]) == ("warm", 0.0)
    assert changed.json()["version"] == 2
    assert (await world.call(tenant, "GET", path)).json() == changed.json()
    assert (await world.call(tenant, "DELETE", path)).status_code == 204
    assert (await world.call(tenant, "GET", path)).status_code == 404


async def test_a_disabled_rule_stays_so_when_it_is_changed_without_a_word_of_it(
    world: World,
) -> None:
    tenant, device = uuid4(), uuid4()
    made = await world.call(tenant, "POST", "", a_rule(device, enabled=False))
    path = f"/{made.json()['id']}"
    assert made.json()["enabled"] is False
    changed = await world.call(tenant, "PUT", path, a_rule(device, name="other"))
    assert changed.json()["enabled"] is False
    changed = await world.call(tenant, "PUT", path, a_rule(device, enabled=True))
    assert changed.json()["enabled"] is True


async def test_a_change_to_a_version_that_is_past_is_refused(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    made = await world.call(tenant, "POST", "", a_rule(device))
    path, change = f"/{made.json()['id']}", a_rule(device, name="mine")
    first = await world.call(tenant, "PUT", path, change, **{"if-match": '"1"'})
    assert first.status_code == 200
    late = await world.call(tenant, "PUT", path, change, **{"if-match": '"1"'})
    assert late.status_code == 412
    late = await world.call(tenant, "DELETE", path, **{"if-match": "1"})
    assert late.status_code == 412


async def test_the_rules_come_in_pages_oldest_first_and_by_device(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    names = [f"rule {number}" for number in range(5)]
    for name in names:
        await world.call(tenant, "POST", "", a_rule(device, name=name))
    await world.call(tenant, "POST", "", a_rule(uuid4(), name="another device's"))
    seen, cursor = [], ""
    while True:
        page = await world.call(tenant, "GET", f"?device_id={device}&limit=2{cursor}")
        seen += [rule["name"] for rule in page.json()["items"]]
        if page.json()["next_cursor"] is None:
            break
        cursor = f"&cursor={page.json()['next_cursor']}"
    assert seen == names
    assert len((await world.call(tenant, "GET", "")).json()["items"]) == 6
    assert (await world.call(tenant, "GET", "?limit=0")).status_code == 422
    assert (await world.call(tenant, "GET", "?cursor=made-up")).status_code == 400


async def test_a_foreign_rule_is_answered_like_one_that_never_was(world: World) -> None:
    owner, stranger, device = uuid4(), uuid4(), uuid4()
    made = await world.call(owner, "POST", "", a_rule(device))
    foreign, unknown = made.json()["id"], str(uuid4())
    for method, action, body in [
        ("GET", "", None),
        ("PUT", "", a_rule(device)),
        ("DELETE", "", None),
        ("POST", "/enable", None),
        ("POST", "/disable", None),
    ]:
        answers = []
        for rule_id in (foreign, unknown):
            answer = await world.call(stranger, method, f"/{rule_id}{action}", body)
            assert answer.status_code == 404, (method, action)
            problem = answer.json()
            problem.pop("request_id")
            answers.append((str(problem).replace(rule_id, "…"), answer.headers["content-type"]))
        assert answers[0] == answers[1]
    assert (await world.call(stranger, "GET", "")).json()["items"] == []
    assert (await world.call(owner, "GET", f"/{foreign}")).json()["enabled"] is True


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"condition": {"operator": "gt", "value": 90, "clear_value": 91}}, "#/condition/clear_value"),
        ({"condition": {"operator": "lt", "value": 10, "clear_value": 9}}, "#/condition/clear_value"),
        ({"condition": {"operator": "eq", "value": 1, "clear_value": 1}}, "#/condition/clear_value"),
        ({"condition": {"operator": "above", "value": 90}}, "#/condition/operator"),
        ({"condition": {"operator": "gt"}}, "#/condition/value"),
        ({"condition": {"operator": "gt", "value": "90"}}, "#/condition/value"),
        ({"condition": {"operator": "gt", "value": 1e301}}, "#/condition/value"),
        ({"condition": {"operator": "gt", "value": 90, "clear_value": -1e301}}, "#/condition/clear_value"),
        ({"for": -1}, "#/for"),
        ({"for": "soon"}, "#/for"),
        ({"for": "P31D"}, "#/for"),
        ({"for": 1e300}, "#/for"),
        ({"hold": 1}, "#/hold"),
        ({"severity": "apocalyptic"}, "#/severity"),
        ({"type": "astrological"}, "#/type"),
        ({"device_id": "pump-1"}, "#/device_id"),
        ({"metric": ""}, "#/metric"),
        ({"metric": "m" * 129}, "#/metric"),
        ({"name": ""}, "#/name"),
        ({"name": "two\nlines"}, "#/name"),
        ({"enabled": "maybe"}, "#/enabled"),
    ],
)  # fmt: skip
async def test_a_wrong_rule_is_refused_with_the_place_of_the_fault(
    world: World, changes: dict[str, object], pointer: str
) -> None:
    answer = await world.call(uuid4(), "POST", "", a_rule(uuid4(), **changes))
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
async def test_what_is_no_number_is_no_limit(world: World, number: str) -> None:
    body = (
        f'{{"name": "r", "type": "threshold", "device_id": "{uuid4()}", "metric": "temp",'
        f' "condition": {{"operator": "gt", "value": {number}}}, "severity": "low"}}'
    )
    answer = await world.http.post(
        "/api/v1/rules",
        content=body,
        headers={**world.principal_headers(uuid4()), "content-type": "application/json"},
    )
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/condition/value"]


async def test_a_limit_of_a_bool_metric_may_be_said_as_a_bool(world: World) -> None:
    body = a_rule(uuid4(), condition={"operator": "eq", "value": False})
    answer = await world.call(uuid4(), "POST", "", body)
    assert answer.json()["condition"]["value"] == 0.0


async def test_reading_and_writing_are_two_permissions(world: World) -> None:
    tenant, device = uuid4(), uuid4()
    reader = world.principal_headers(tenant, "rules:read")
    assert (await world.http.get("/api/v1/rules", headers=reader)).status_code == 200
    refused = await world.http.post("/api/v1/rules", json=a_rule(device), headers=reader)
    assert refused.status_code == 403
    writer = world.principal_headers(tenant, "rules:write")
    assert (await world.http.get("/api/v1/rules", headers=writer)).status_code == 403
    assert (await world.http.get("/api/v1/rules")).status_code == 401
