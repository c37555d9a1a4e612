"""Training models and asking them."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.events.base import to_message
from libs.common.events.ingest import DeviceDeleted
from libs.common.events.ml import ModelChanged
from libs.common.events.tenancy import TenantDeleted
from libs.common.historian.point import Kind
from tests.history import BAD
from tests.service.ml.conftest import NOON, USUAL, World, a_model


async def test_a_model_learns_what_is_usual(world: World) -> None:
    series = await world.trained_series()
    await series.add(NOON - timedelta(minutes=30), 1, [1e6] * 50, quality=BAD)
    body = await world.model(series, name="spindle")
    assert (body["median"], body["mad"], body["n"], body["version"]) == (50, 1, len(USUAL), 1)
    assert (body["threshold"], body["name"], body["type"]) == (3.5, "spindle", "robust_zscore")
    assert body["normal_max"] == pytest.approx(50 + 3.5 * 1.4826)
    got = await world.call("GET", f"/models/{body['id']}")
    assert got.json() == body
    assert (await world.call("GET", "/models")).json() == {"items": [body], "next_cursor": None}


async def test_the_last_hours_are_learnt_from_unless_said_otherwise(world: World) -> None:
    now = SystemClock().now()
    series = await world.past.series(world.tenant_id, metric="vibration")
    await series.add(now - timedelta(hours=30), 1, [500, 501, 502] * 20)
    await series.add(now - timedelta(hours=2), 1, USUAL)
    assert (await world.model(series, train={}))["median"] == 50
    assert (await world.model(series, train={"last": "PT36H"}))["n"] == 120
    refused = await world.call("POST", "/models", a_model(series, train={"last": 3600}))
    assert refused.status_code == 409


async def test_what_teaches_nothing_is_refused_with_the_reason(world: World) -> None:
    async def refusal(values: list[float], **changes: Any) -> tuple[int, str]:
        series = await world.past.series(world.tenant_id, metric="vibration")
        await series.add(NOON - timedelta(minutes=50), 1, values)
        answer = await world.call("POST", "/models", a_model(series, **changes))
        return answer.status_code, answer.json()["detail"]

    few = await refusal(USUAL[:29])
    assert few == (409, "29 good points in that time, 30 are needed")
    assert await refusal([7.0] * 60) == (422, "the metric is constant: every value is 7")
    mostly = await refusal([0.0] * 40 + [1.0] * 20)
    assert mostly[0] == 422
    assert "more than half of the values are 0" in mostly[1]
    many = await refusal([float(i) for i in range(1_001)])
    assert many[0] == 422
    assert "more than 1000 points" in many[1]
    assert (await world.call("GET", "/models")).json()["items"] == []


async def test_text_teaches_nothing(world: World) -> None:
    series = await world.past.series(world.tenant_id, kind=Kind.TEXT)
    assert (await world.call("POST", "/models", a_model(series))).status_code == 422


async def test_a_name_is_given_once(world: World) -> None:
    series = await world.trained_series()
    await world.model(series, name="spindle")
    again = await world.call("POST", "/models", a_model(series, name="spindle"))
    assert again.status_code == 409


async def test_training_anew_learns_anew_or_leaves_all_as_it_was(world: World) -> None:
    series = await world.trained_series()
    model = await world.model(series)
    path = f"/models/{model['id']}/train"
    await series.add(NOON, 1, [80, 90, 100] * 10)
    later = {"from": NOON.isoformat(), "to": (NOON + timedelta(minutes=5)).isoformat()}
    trained = (await world.call("POST", path, {"train": later})).json()
    assert (trained["median"], trained["version"], trained["id"]) == (90, 2, model["id"])
    empty = {
        "from": (NOON - timedelta(days=9)).isoformat(),
        "to": (NOON - timedelta(days=8)).isoformat(),
    }
    assert (await world.call("POST", path, {"train": empty})).status_code == 409
    assert (await world.call("GET", f"/models/{model['id']}")).json() == trained


async def test_a_model_says_what_it_makes_of_values(world: World) -> None:
    model = await world.model(await world.trained_series())
    answer = await world.call("POST", f"/models/{model['id']}/score", {"values": [50, 55, 56, -9]})
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert (body["expected"], body["anomalies"], body["next_from"]) == (50, 2, None)
    assert [item["is_anomaly"] for item in body["items"]] == [False, False, True, True]
    assert body["items"][0] == {"ts": None, "value": 50, "z": 0, "score": 0, "is_anomaly": False}
    assert body["items"][2]["z"] == pytest.approx(6 / 1.4826)
    assert 0.5 < body["items"][2]["score"] < body["items"][3]["score"] < 1


async def test_a_model_says_what_it_makes_of_the_past_a_page_at_a_time(world: World) -> None:
    series = await world.trained_series()
    model = await world.model(series)
    await series.add(NOON, 1, [50, 60, 50, 70, 50])
    span: dict[str, Any] = {"from": NOON.isoformat(), "to": (NOON + timedelta(hours=1)).isoformat()}
    path = f"/models/{model['id']}/score"
    first = (await world.call("POST", path, {**span, "limit": 3})).json()
    assert [i["is_anomaly"] for i in first["items"]] == [False, True, False]
    rest = (await world.call("POST", path, {**span, "from": first["next_from"]})).json()
    assert [(i["value"], i["is_anomaly"]) for i in rest["items"]] == [(70, True), (50, False)]
    assert rest["next_from"] is None
    assert await world.anomalies() == []


async def test_another_tenants_model_and_device_are_as_unknown_as_none_at_all(world: World) -> None:
    series = await world.trained_series()
    model = await world.model(series)
    other = uuid4()
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/train", {"train": {"last": "PT1H"}}),
        ("POST", "/score", {"values": [1]}),
    ):
        answers = [
            await world.call(method, f"/models/{an_id}{path}", body, tenant_id=other)
            for an_id in (model["id"], uuid4())
        ]
        assert [a.status_code for a in answers] == [404, 404]
    assert (await world.call("GET", "/models", tenant_id=other)).json()["items"] == []
    foreign = await world.call("POST", "/models", a_model(series), tenant_id=other)
    unknown = await world.call(
        "POST", "/models", {**a_model(series), "device_id": str(uuid4())}, tenant_id=other
    )
    assert foreign.status_code == unknown.status_code == 404


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"name": ""}, "#/name"),
        ({"type": "oracle"}, "#/type"),
        ({"threshold": 0}, "#/threshold"),
        ({"min_points": 9}, "#/min_points"),
        ({"train": {"last": "PT1H", "from": "2026-06-01T00:00:00Z"}}, "#/train/last"),
        ({"train": {"to": "2026-06-01T00:00:00Z"}}, "#/train/from"),
        ({"train": {"from": "2026-06-02T00:00:00Z", "to": "2026-06-01T00:00:00Z"}}, "#/train/from"),
        ({"train": {"from": "2020-06-02T00:00:00Z", "to": "2026-06-01T00:00:00Z"}}, "#/train/from"),
        ({"train": {"from": "0001-06-02T00:00:00Z", "to": "2026-06-01T00:00:00Z"}}, "#/train/from"),
        ({"horizon": 5}, "#/horizon"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    world: World, changes: dict[str, Any], pointer: str
) -> None:
    series = await world.past.series(world.tenant_id)
    refused = await world.call("POST", "/models", a_model(series, **changes))
    assert refused.status_code == 422, refused.text
    assert [e["pointer"] for e in refused.json()["errors"]] == [pointer]


async def test_the_models_of_a_removed_device_go_with_it(world: World) -> None:
    series, other = await world.trained_series(), await world.trained_series()
    await world.model(series)
    kept = await world.model(other)
    event = DeviceDeleted(tenant_id=world.tenant_id, at=NOON, device_id=series.device_id)
    await world.bus.publish([to_message(event)])
    await world.settled()
    assert [m["id"] for m in (await world.call("GET", "/models")).json()["items"]] == [kept["id"]]


async def test_nothing_is_kept_of_a_tenant_that_is_no_more(world: World) -> None:
    series = await world.trained_series()
    models = [await world.model(series), await world.model(series)]
    await world.send(series, (1, 99))
    assert len(await world.anomalies()) == 2
    other = uuid4()
    await world.past.query(
        "INSERT INTO ml.anomalies SELECT (jsonb_populate_record(a, jsonb_build_object("
        "'tenant_id', $2::uuid))).* FROM ml.anomalies a WHERE tenant_id = $1 LIMIT 1",
        world.tenant_id,
        other,
    )
    gone = TenantDeleted(tenant_id=world.tenant_id, at=NOON, slug="gone")
    await world.bus.publish([to_message(gone), to_message(gone)])
    await world.settled()

    async def kept(tenant_id: UUID) -> dict[str, int]:
        tables = ("models", "model_state", "anomalies")
        return {
            table: len(
                await world.past.query(f"SELECT FROM ml.{table} WHERE tenant_id = $1", tenant_id)
            )
            for table in tables
        }

    assert await kept(world.tenant_id) == {"models": 0, "model_state": 0, "anomalies": 0}
    # Every worker is told of each model, as of any that is deleted.
    told = await world.past.query(
        "SELECT FROM bus.log WHERE type = $1 AND tenant_id = $2"
        " AND convert_from(body, 'utf-8') LIKE '%deleted%'",
        ModelChanged.type,
        world.tenant_id,
    )
    assert len(told) == len(models)
    # What was on its way still comes, and finds nothing.
    await world.send(series, (2, 50), (3, 50), (4, 50), (5, 99))
    assert await kept(world.tenant_id) == {"models": 0, "model_state": 0, "anomalies": 0}
    assert (await kept(other))["anomalies"] == 1
