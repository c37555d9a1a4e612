"""What a device says over HTTP is stored, or it is told why not."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World


def as_device(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_a_device_sends_a_reading_and_it_is_stored(world: World) -> None:
    device_id, token = await world.device()
    answer = await world.http.post(
        "/api/v1/telemetry", json={"values": {"temp": 21.5}}, headers=as_device(token)
    )
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"accepted": 1, "rejected": []}
    [(metric, ts, value)] = await world.until_stored(device_id, 1)
    assert (metric, value) == ("temp", 21.5)
    assert abs(ts - datetime.now(UTC).timestamp()) < 30


async def test_a_list_keeps_its_times_and_types(world: World) -> None:
    device_id, token = await world.device()
    noon = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    answer = await world.http.post(
        "/api/v1/telemetry",
        json=[
            {"ts": noon.isoformat(), "values": {"temp": 20, "running": True, "mode": "auto"}},
            {"ts": int(noon.timestamp() * 1000) + 1, "values": {"temp": 20.5}},
        ],
        headers=as_device(token),
    )
    assert answer.json() == {"accepted": 4, "rejected": []}
    points = await world.until_stored(device_id, 3)
    assert {(metric, ts - noon.timestamp(), value) for metric, ts, value in points} == {
        ("temp", 0.0, 20.0),
        ("running", 0.0, 1.0),
        ("temp", 0.001, 20.5),
    } or sorted(points)
    texts = await world.query(
        "SELECT value FROM historian.texts t JOIN historian.series s"
        " ON s.tenant = t.tenant AND s.id = t.series WHERE s.device_id = $1",
        device_id,
    )
    assert [row["value"] for row in texts] == ["auto"]


async def test_bad_points_are_named_and_quarantined_and_their_neighbours_stored(
    world: World,
) -> None:
    device_id, token = await world.device()
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    answer = await world.http.post(
        "/api/v1/telemetry",
        json=[
            {"ts": now_ms, "values": {"temp": 21.5, "x" * 129: 1, "nested": {"a": 1}}},
            {"ts": now_ms + 3_600_000, "values": {"temp": 1}},
            {"ts": 0, "values": {"temp": 1}},
            {"ts": "2026-01-31T12:00:00", "values": {"temp": 1}},
            {"ts": now_ms + 1, "values": {"temp": "hot"}},
            {"ts": now_ms + 2, "values": {"temp": 22.5}},
        ],
        headers=as_device(token),
    )
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert body["accepted"] == 2
    reasons = {(r["index"], r["metric"], r["reason"]) for r in body["rejected"]}
    assert reasons == {
        (0, "x" * 128, "bad_metric_name"),
        (0, "nested", "unsupported_value"),
        (1, None, "clock_ahead"),
        (2, None, "too_old"),
        (3, None, "naive_timestamp"),
        (4, "temp", "type_changed"),
    }
    points = await world.until_stored(device_id, 2)
    assert [value for _, _, value in points] == [21.5, 22.5]
    listed = await world.http.get("/api/v1/telemetry/quarantine", headers=world.headers)
    assert {entry["reason"] for entry in listed.json()["items"]} == {r for _, _, r in reasons}
    hot = next(e for e in listed.json()["items"] if e["reason"] == "type_changed")
    shown = await world.http.get(f"/api/v1/telemetry/quarantine/{hot['id']}", headers=world.headers)
    assert '"hot"' in shown.json()["payload"]


async def test_a_user_sends_in_the_name_of_a_device_of_his_tenant_only(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    reading = {"device_id": str(device_id), "values": {"temp": 3.0}}
    mine = await world.http.post("/api/v1/telemetry", json=reading, headers=world.headers)
    assert mine.status_code == 202, mine.text
    theirs = await world.http.post(
        "/api/v1/telemetry", json=reading, headers=principal_headers(uuid4())
    )
    nobodys = await world.http.post(
        "/api/v1/telemetry",
        json={**reading, "device_id": str(uuid4())},
        headers=world.headers,
    )
    assert theirs.status_code == nobodys.status_code == 404
    assert await world.until_stored(device_id, 1)


async def test_wrong_tokens_and_bodies_get_a_problem_that_names_what_is_wrong(
    world: World,
) -> None:
    _, token = await world.device()
    mine = as_device(token)
    url = "/api/v1/telemetry"
    json_type = {"content-type": "application/json"}

    async def status(content: bytes, headers: dict[str, str]) -> tuple[int, str]:
        answer = await world.http.post(url, content=content, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        body = answer.json()
        return answer.status_code, (body["errors"] or [{"pointer": ""}])[0]["pointer"]

    good = b'{"values": {"temp": 1}}'
    assert await status(good, json_type) == (401, "")
    assert await status(good, json_type | as_device(f"{token[:-1]}_")) == (401, "")
    assert await status(b'{"values": {"temp": 1', json_type | mine) == (400, "")
    assert await status(good, {"content-type": "text/plain"} | mine) == (415, "")
    assert await status(b'{"values": {}, "vales": {}}', json_type | mine) == (422, "#/vales")
    assert await status(b'{"temp": 1}', json_type | mine) == (422, "#/temp")
    assert await status(b"[1]", json_type | mine) == (422, "#/0")
    assert (await status(b'{"values": {"temp": NaN}}', json_type | mine))[0] in (400, 422)
    assert await status(b" " * (1024 * 1024 + 1), json_type | mine) == (413, "")
