"""Requests that are wrong, each in its own way: the answer says which, and nothing is half done."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.ingest.domain.device import Status
from services.ingest.domain.payload import MOST_POINTS
from services.ingest.usecases import devices as usecases
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

TELEMETRY = "/api/v1/telemetry"
DEVICES = "/api/v1/devices"
JSON = {"content-type": "application/json"}


def as_device(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} | JSON


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b'{"values": {"temp": 1}} trailing', 400, None),
        (b'\xef\xbb\xbf{"values": {"temp": 1}}', 400, None),
        (b'{"values": {"temp": "\xff"}}', 400, None),
        (b'{"values": {"temp": NaN}}', 400, None),
        (b'{"values": {"temp": Infinity}}', 400, None),
        (b'{"values": {"temp": 1e999}}', 400, None),
        (b'{"values": {"temp": "\\ud800"}}', 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"values": {"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}", 400, None),
        (b"null", 422, "#"),
        (b"7", 422, "#"),
        (b'"text"', 422, "#"),
        (b"[[]]", 422, "#/0"),
        (b'[{"values": {"a": 1}}, 7]', 422, "#/1"),
        (b"{}", 422, "#/values"),
        (b'{"values": []}', 422, "#/values"),
        (b'{"values": {"a": 1}, "quality": 1}', 422, "#/quality"),
        (b'[{"values": {"a": 1}}, {"values": {"a": 1}, "unit": "C"}]', 422, "#/1/unit"),
        (b"[" + b",".join([b'{"values":{}}'] * 10_001) + b"]", 422, "#"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_body_that_is_wrong_as_a_whole_is_refused_as_a_whole(
    world: World, body: bytes, status: int, pointer: str | None
) -> None:
    _, token = await world.device()
    answer = await world.http.post(TELEMETRY, content=body, headers=as_device(token))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if pointer is not None:
        assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        ({"ts": "2026-01-31T12:00:00", "values": {"temp": 1}}, "naive_timestamp"),
        ({"ts": "yesterday", "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": "", "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": True, "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": {"a": 1}, "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": 10**400, "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": -(2**53), "values": {"temp": 1}}, "bad_timestamp"),
        ({"ts": -1, "values": {"temp": 1}}, "too_old"),
        ({"ts": 2**52, "values": {"temp": 1}}, "clock_ahead"),
        ({"ts": "0001-01-01T00:00:00+23:59", "values": {"temp": 1}}, "too_old"),
        ({"ts": "9999-12-31T23:59:59-23:59", "values": {"temp": 1}}, "clock_ahead"),
        ({"ts": "2999-01-01\u000000:00:00Z", "values": {"temp": 1}}, "clock_ahead"),
        ({"values": {"x" * 129: 1}}, "bad_metric_name"),
        ({"values": {"": 1}}, "bad_metric_name"),
        ({"values": {"a\u0000b": 1}}, "bad_metric_name"),
        ({"values": {"temp": 2**53 + 1}}, "not_a_number"),
        ({"values": {"temp": 10**400}}, "not_a_number"),
        ({"values": {"temp": None}}, "unsupported_value"),
        ({"values": {"temp": [1]}}, "unsupported_value"),
        ({"values": {"mode": "x" * 4097}}, "bad_text"),
        ({"values": {"mode": "a\u0000b"}}, "bad_text"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_a_reading_that_is_wrong_lies_in_quarantine_and_its_neighbour_is_stored(
    world: World, reading: object, reason: str
) -> None:
    device_id, token = await world.device()
    body = json.dumps([reading, {"values": {"good": 1}}]).encode()
    answer = await world.http.post(TELEMETRY, content=body, headers=as_device(token))
    assert answer.status_code == 202, answer.text
    assert answer.json()["accepted"] == 1
    assert [(r["index"], r["reason"]) for r in answer.json()["rejected"]] == [(0, reason)]
    assert await world.until_stored(device_id, 1)

    async def is_quarantined() -> bool:
        listed = await world.http.get(f"{TELEMETRY}/quarantine", headers=world.headers)
        return [entry["reason"] for entry in listed.json()["items"]] == [reason]

    await until(is_quarantined, "quarantined")


async def test_who_may_not_send_is_told_so_and_sends_nothing(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, token = await world.device()
    other_id, _ = await world.device()
    good = {"values": {"temp": 1}}
    named = {**good, "device_id": str(device_id)}

    async def status(body: object, headers: dict[str, str]) -> int:
        answer = await world.http.post(TELEMETRY, json=body, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        return answer.status_code

    assert await status(good, {}) == 401
    assert await status(good, {"authorization": "Bearer iiotd_" + "A" * 43}) == 401
    assert await status(good, {"authorization": f"Basic {token}"}) == 401
    assert await status(good, {"authorization": "Bearer"}) == 401
    assert await status(named, principal_headers(world.tenant_id, "telemetry:read")) == 403
    assert await status(named, principal_headers(uuid4())) == 404
    assert await status({**good, "device_id": str(uuid4())}, world.headers) == 404
    assert await status({**good, "device_id": "no id"}, world.headers) == 422
    assert await status({**good, "device_id": [1]}, world.headers) == 422
    assert await status(good, world.headers) == 422
    assert await status({**good, "device_id": str(other_id)}, as_device(token)) == 422
    assert await world.stored(device_id) == []
    assert await world.stored(other_id) == []


async def test_what_is_no_json_by_its_type_or_too_large_is_not_read(world: World) -> None:
    _, token = await world.device()
    good = b'{"values": {"temp": 1}}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        answer = await world.http.post(
            TELEMETRY, content=good, headers=as_device(token) | {"content-type": content_type}
        )
        assert answer.status_code == 415, content_type
    answer = await world.http.post(
        TELEMETRY, content=good + b" " * 1024 * 1024, headers=as_device(token)
    )
    assert answer.status_code == 413


async def test_all_the_points_of_a_message_new_metrics_make_a_thousand_series_and_few_entries(
    world: World,
) -> None:
    device_id, token = await world.device()
    body = json.dumps({"values": {f"m{n}": n for n in range(MOST_POINTS)}}).encode()
    answer = await world.http.post(TELEMETRY, content=body, headers=as_device(token))
    assert answer.status_code == 202, answer.text[:200]
    assert answer.json()["accepted"] == 1_000
    assert len(answer.json()["rejected"]) == MOST_POINTS - 1_000
    assert len(await world.until_stored(device_id, 1_000)) == 1_000

    async def entries() -> int:
        rows = await world.query("SELECT 1 FROM ingest.quarantine WHERE device_id = $1", device_id)
        return len(rows)

    async def is_there() -> bool:
        return await entries() > 0

    await until(is_there, "the refused are quarantined")
    assert await entries() <= 20


async def test_many_devices_in_one_request_wait_for_one_batch(world: World) -> None:
    devices = [await world.device() for _ in range(60)]
    body = [{"device_id": str(device_id), "values": {"temp": 1}} for device_id, _ in devices]
    await world.http.post(TELEMETRY, json=body, headers=world.headers)
    before = world.app.state.intake.published_batches
    answer = await world.http.post(TELEMETRY, json=body, headers=world.headers)
    assert answer.json() == {"accepted": 60, "rejected": []}
    assert world.app.state.intake.published_batches - before < 30


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"name": "", "type": "pump"}, "#/name"),
        ({"name": "x" * 129, "type": "pump"}, "#/name"),
        ({"name": "a\nb", "type": "pump"}, "#/name"),
        ({"name": 7, "type": "pump"}, "#/name"),
        ({"name": "pump 1"}, "#/type"),
        ({"name": "pump 1", "type": "x" * 65}, "#/type"),
        ({"name": "pump 1", "type": "pump", "description": "x" * 1001}, "#/description"),
        ({"name": "pump 1", "type": "pump", "colour": "red"}, "#/colour"),
        ({"name": "pump 1", "type": "pump\u0000"}, "#/type"),
    ],
)
async def test_a_device_that_is_described_wrongly_is_not_registered(
    world: World, body: dict[str, object], pointer: str
) -> None:
    answer = await world.http.post(DEVICES, json=body, headers=world.headers)
    assert answer.status_code == 422, answer.text
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert (await world.http.get(DEVICES, headers=world.headers)).json()["items"] == []


async def test_a_name_is_taken_once_within_a_tenant_and_free_in_another(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    body = {"name": "pump 1", "type": "pump"}
    first = await world.http.post(DEVICES, json=body, headers=world.headers)
    again = await world.http.post(DEVICES, json=body, headers=world.headers)
    theirs = await world.http.post(DEVICES, json=body, headers=principal_headers(uuid4()))
    assert (first.status_code, again.status_code, theirs.status_code) == (201, 409, 201)
    second = await world.http.post(DEVICES, json={**body, "name": "pump 2"}, headers=world.headers)
    renamed = await world.http.patch(
        f"{DEVICES}/{second.json()['id']}", json={"name": "pump 1"}, headers=world.headers
    )
    assert renamed.status_code == 409, renamed.text
    at_once = await asyncio.gather(
        *(
            world.http.post(DEVICES, json={**body, "name": "pump 3"}, headers=world.headers)
            for _ in range(5)
        )
    )
    assert sorted(answer.status_code for answer in at_once) == [201, 409, 409, 409, 409]


async def test_a_change_of_what_was_changed_meanwhile_is_refused(world: World) -> None:
    device_id, _ = await world.device()
    url = f"{DEVICES}/{device_id}"

    async def change(if_match: str, description: str) -> int:
        answer = await world.http.patch(
            url,
            json={"description": description},
            headers=world.headers | {"if-match": if_match},
        )
        return answer.status_code

    assert await change('"1"', "first") == 200
    assert await change('"1"', "second") == 412
    assert await change("2", "third") == 200
    assert await change("not a version", "fourth") == 422
    answer = await world.http.get(url, headers=world.headers)
    assert (answer.json()["description"], answer.json()["version"]) == ("third", 3)
    at_once = await asyncio.gather(*(change('"3"', f"racer {n}") for n in range(5)))
    assert sorted(at_once) == [200, 412, 412, 412, 412]


async def test_what_is_another_tenants_is_what_never_was(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    stranger = principal_headers(uuid4())
    for method, suffix, body in (
        ("GET", "", None),
        ("PATCH", "", {"name": "mine now"}),
        ("DELETE", "", None),
        ("POST", "/credentials", None),
    ):
        answers = []
        for asked in (device_id, uuid4()):
            answer = await world.http.request(
                method, f"{DEVICES}/{asked}{suffix}", json=body, headers=stranger
            )
            assert answer.status_code == 404, (method, answer.text)
            problem = answer.json()
            problem.pop("request_id", None)
            answers.append(json.dumps(problem).replace(str(asked), "…"))
        assert answers[0] == answers[1]
    assert (await world.http.get(DEVICES, headers=stranger)).json()["items"] == []
    assert (
        await world.http.get(f"{DEVICES}/{device_id}", headers=world.headers)
    ).status_code == 200


async def test_a_device_removed_twice_at_once_is_removed_once(world: World) -> None:
    device_id, _ = await world.device()
    url = f"{DEVICES}/{device_id}"
    answers = await asyncio.gather(
        *(world.http.delete(url, headers=world.headers) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404]


async def test_pages_miss_none_and_repeat_none_while_devices_come(world: World) -> None:
    there = [str((await world.device())[0]) for _ in range(12)]
    seen: list[str] = []
    cursor = ""
    while True:
        answer = await world.http.get(
            DEVICES,
            params={"limit": 5} | ({"cursor": cursor} if cursor else {}),
            headers=world.headers,
        )
        seen += [item["id"] for item in answer.json()["items"]]
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            break
        if len(seen) <= 10:
            there.append(str((await world.device())[0]))
    assert seen == there


async def test_limits_and_cursors_that_are_none_are_refused(world: World) -> None:
    for _ in range(3):
        await world.device()
    page = await world.http.get(DEVICES, params={"limit": 2}, headers=world.headers)
    cursor = page.json()["next_cursor"]

    async def status(path: str, **params: str | int) -> int:
        answer = await world.http.get(path, params=params, headers=world.headers)
        return answer.status_code

    assert await status(DEVICES, cursor=cursor) == 200
    assert await status(DEVICES, cursor=cursor[:-2]) == 400
    assert await status(DEVICES, cursor="B" + cursor[1:]) == 400
    assert await status(DEVICES, cursor=cursor[:20] + "x" + cursor[21:]) == 400
    assert await status(f"{TELEMETRY}/quarantine", cursor=cursor) == 400
    for limit in ("0", "-1", "201", "many", "1.5"):
        assert await status(DEVICES, limit=limit) == 422, limit
    assert await status(DEVICES, limit=200) == 200


async def test_a_database_that_went_away_is_a_503_and_comes_back(world: World) -> None:
    device_id, token = await world.device()
    sent = await world.http.post(TELEMETRY, json={"values": {"temp": 1}}, headers=as_device(token))
    assert sent.status_code == 202
    admin = await asyncpg.connect(world.urls.admin)
    try:
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await admin.close()

    async def is_back() -> bool:
        answer = await world.http.get(f"{DEVICES}/{device_id}", headers=world.headers)
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200

    await until(is_back, "the registry answers again")

    async def sends() -> bool:
        answer = await world.http.post(
            TELEMETRY, json={"values": {"new": 1}}, headers=as_device(token)
        )
        assert answer.status_code in (202, 503), answer.text
        return answer.status_code == 202

    await until(sends, "telemetry is taken again")
    await world.until_stored(device_id, 2)


async def test_a_word_that_was_overtaken_does_not_replace_the_newer_one(world: World) -> None:
    """A connection's end and the next one's begin may be written in the wrong order."""
    device_id, _ = await world.device()
    now = datetime.now(UTC)

    async def note(status: Status, reason: str, at: datetime) -> tuple[str, str]:
        async with world.app.state.transactions.begin(world.tenant_id) as store:
            await usecases.note_status(store, device_id, status, reason, at=at)
        return await shown(world, device_id)

    newer = ("online", "connected again")
    assert await note(Status.ONLINE, "connected again", now) == newer
    assert await note(Status.OFFLINE, "lost", now - timedelta(milliseconds=1)) == newer
    later = now + timedelta(seconds=1)
    assert await note(Status.OFFLINE, "lost", later) == ("offline", "lost")
    # A clock that was set back by an hour does not silence the device for that hour.
    set_back = later - timedelta(hours=1)
    assert await note(Status.ONLINE, "back", set_back) == ("online", "back")


async def shown(world: World, device_id: UUID) -> tuple[str, str]:
    answer = await world.http.get(f"{DEVICES}/{device_id}", headers=world.headers)
    return answer.json()["status"], answer.json()["status_reason"]
