"""Every form over HTTP, packed or not; what Telegraf sends; units and quality, down to the historian."""

import base64
import gzip
import zlib
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import cbor2
import pytest

from libs.common.historian.point import Quality
from services.ingest.api.body import MOST_BYTES
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

TELEMETRY = "/api/v1/telemetry"
INFLUX = f"{TELEMETRY}/influx"


def as_device(token: str, content_type: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", "content-type": content_type, **more}


async def qualities(world: World, device_id: UUID) -> dict[str, tuple[float, Quality, str | None]]:
    rows = await world.query(
        "SELECT s.metric, p.value, p.quality, s.unit FROM historian.series s"
        " JOIN historian.points p ON p.tenant = s.tenant AND p.series = s.id"
        " WHERE s.device_id = $1",
        device_id,
    )
    return {row["metric"]: (row["value"], Quality(row["quality"]), row["unit"]) for row in rows}


BODIES = {
    "application/json": b'[{"values": {"a": 1}}, {"values": {"b": 2}}]',
    "application/x-ndjson": b'{"a": 1}\n{"values": {"b": 2}}\n',
    "text/csv; charset=utf-8": b"ts,metric,value\n,a,1\n,b,2\n",
    "application/senml+json": b'[{"n": "a", "v": 1}, {"n": "b", "v": 2}]',
    "application/cbor": cbor2.dumps([{"a": 1}, {"b": 2}]),
    "application/senml+cbor": cbor2.dumps([{0: "a", 2: 1}, {0: "b", 2: 2}]),
    "application/x-influx-line-protocol": b"a value=1\nb value=2",
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_each_form_is_taken_packed_or_not(world: World, packed: bool) -> None:
    for content_type, written in BODIES.items():
        device_id, token = await world.device()
        headers, body = as_device(token, content_type), written
        if packed:
            # Two members, as a gzip file may have.
            body = gzip.compress(written[:5]) + gzip.compress(written[5:])
            headers["content-encoding"] = "gzip"
        answer = await world.http.post(TELEMETRY, content=body, headers=headers)
        assert answer.status_code == 202, (content_type, answer.text)
        assert answer.json() == {"accepted": 2, "rejected": []}, content_type
        stored = await world.until_stored(device_id, 2)
        assert {(metric, value) for metric, _, value in stored} == {("a", 1.0), ("b", 2.0)}


async def test_a_body_that_cannot_be_read_is_refused_whole_and_says_why(world: World) -> None:
    _, token = await world.device()

    async def refused(body: bytes, content_type: str, **more: str) -> tuple[int, str]:
        answer = await world.http.post(
            TELEMETRY, content=body, headers=as_device(token, content_type, **more)
        )
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        return answer.status_code, answer.json()["detail"]

    gz = {"content-encoding": "gzip"}
    good = b'{"values": {"a": 1}}'
    status, detail = await refused(good, "application/xml")
    assert status == 415
    assert "text/csv" in detail
    assert (await refused(good, "application/json", **{"content-encoding": "br"}))[0] == 415
    assert (await refused(zlib.compress(good), "application/json", **gz))[0] == 400
    assert (await refused(gzip.compress(good)[:-9], "application/json", **gz))[0] == 400
    bomb = gzip.compress(b" " * (MOST_BYTES + 1))
    assert len(bomb) < 10_000
    assert (await refused(bomb, "application/json", **gz))[0] == 413
    nested = gzip.compress(b'{"values": {"a": ' + b"[" * 40 + b"]" * 40 + b"}}")
    assert (await refused(nested, "application/json", **gz))[0] == 400
    assert (await refused(b'{"values": {"a": 1, "a": 2}}', "application/json"))[0] == 400
    assert (await refused(b"\xa1\x61", "application/cbor"))[0] == 400
    assert (await refused(b"{}", "application/senml+json"))[0] == 422
    assert (await refused(b"ts\n", "text/csv"))[0] == 422


async def test_a_bad_row_is_named_and_quarantined_and_can_be_sent_again(world: World) -> None:
    device_id, token = await world.device()
    answer = await world.http.post(
        TELEMETRY,
        content=b"ts,metric,value,unit\n,temp,1,degC\n,temp,5,bar\n,temp,2,degC\n",
        headers=as_device(token, "text/csv"),
    )
    assert answer.json()["accepted"] == 2
    [rejected] = answer.json()["rejected"]
    assert (rejected["index"], rejected["metric"], rejected["reason"]) == (
        1,
        "temp",
        "unit_mismatch",
    )
    assert len(await world.until_stored(device_id, 2)) == 2
    [entry] = (await world.http.get(f"{TELEMETRY}/quarantine", headers=world.headers)).json()[
        "items"
    ]
    again = await world.http.post(
        f"{TELEMETRY}/quarantine/{entry['id']}/replay", headers=world.headers
    )
    assert again.status_code == 422, "its unit is still another's"
    corrected = await world.http.post(
        f"{TELEMETRY}/quarantine/{entry['id']}/replay",
        json={"values": {"temp": 41}, "units": {"temp": "degF"}},
        headers=world.headers,
    )
    assert corrected.status_code == 204, corrected.text
    stored = await world.until_stored(device_id, 3)
    assert sorted(round(value, 9) for _, _, value in stored) == [1.0, 2.0, 5.0]


async def test_a_user_sends_one_table_for_many_devices_of_his_tenant(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    one, _ = await world.device()
    two, _ = await world.device()
    table = f"device_id,ts,temp\n{one},,1\n{two},,2\n{one},,3\n".encode()
    csv = {"content-type": "text/csv"}
    sent = await world.http.post(TELEMETRY, content=table, headers=world.headers | csv)
    assert sent.json() == {"accepted": 3, "rejected": []}
    assert [value for _, _, value in await world.until_stored(one, 2)] == [1.0, 3.0]
    assert [value for _, _, value in await world.until_stored(two, 1)] == [2.0]
    stranger = principal_headers(uuid4())
    foreign = await world.http.post(TELEMETRY, content=table, headers=stranger | csv)
    assert foreign.status_code == 404
    unnamed = await world.http.post(TELEMETRY, content=b"ts,t\n,1\n", headers=world.headers | csv)
    assert unnamed.status_code == 422
    assert unnamed.json()["errors"][0]["pointer"] == "#/0/device_id"
    named = await world.http.post(
        f"{TELEMETRY}?device_id={two}", content=b"ts,temp\n,4\n", headers=world.headers | csv
    )
    assert named.status_code == 202, named.text


async def test_a_device_cannot_speak_for_another_in_any_form(world: World) -> None:
    _, token = await world.device()
    other, _ = await world.device()
    for content_type, body in {
        "text/csv": f"device_id,ts,temp\n{other},,1\n",
        "application/x-ndjson": f'{{"device_id": "{other}", "values": {{"a": 1}}}}',
        "application/x-influx-line-protocol": f"a,device_id={other} value=1",
    }.items():
        answer = await world.http.post(
            TELEMETRY, content=body.encode(), headers=as_device(token, content_type)
        )
        assert answer.status_code == 422, content_type
    by_query = await world.http.post(
        f"{TELEMETRY}?device_id={other}",
        content=b'{"values": {"a": 1}}',
        headers=as_device(token, "application/json"),
    )
    assert by_query.status_code == 422
    assert await world.stored(other) == []


async def test_units_and_quality_reach_the_historian_and_bad_without_a_value_is_nan(
    world: World,
) -> None:
    device_id, token = await world.device()
    for reading in (
        {"values": {"t": 212.0, "p": 1.0}, "units": {"t": "degF", "p": "bar"}},
        {"values": {"good": 1.0}},
        {"values": {"low": 3.0}, "quality": "uncertain"},
        {"values": {"none": None}, "quality": "bad"},
    ):
        answer = await world.http.post(
            TELEMETRY, json=reading, headers=as_device(token, "application/json")
        )
        assert answer.json()["rejected"] == [], answer.text
    await world.until_stored(device_id, 5)
    held = await qualities(world, device_id)
    assert held["t"] == (212.0, Quality.GOOD, "degF")
    assert held["p"] == (1.0, Quality.GOOD, "bar")
    assert held["low"][1] is Quality.UNCERTAIN
    value, quality, _ = held["none"]
    assert value != value
    assert quality is Quality.BAD


async def test_a_unit_that_was_learnt_holds_in_a_process_that_hears_the_device_anew(
    world: World,
) -> None:
    device_id, token = await world.device()
    headers = as_device(token, "application/json")
    await world.http.post(TELEMETRY, json={"values": {"t": 20}}, headers=headers)
    await world.http.post(
        TELEMETRY, json={"values": {"t": 30}, "units": {"t": "degC"}}, headers=headers
    )
    world.app.state.sources.revoke(device_id, "forgotten, as by a restart")
    await world.http.post(
        TELEMETRY, json={"values": {"t": 104}, "units": {"t": "degF"}}, headers=headers
    )
    stored = await world.until_stored(device_id, 3)
    assert [round(value, 9) for _, _, value in stored] == [20.0, 30.0, 40.0]


async def test_telegraf_writes_by_either_version_of_its_output(world: World) -> None:
    device_id, token = await world.device()
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    lines = (
        f"cpu,cpu=cpu0,host=press usage_idle=91.2 {int(at.timestamp())}000000000\n"
        f"mem,host=press used=2601230336i {int(at.timestamp())}000000000\n"
    )
    text = {"content-type": "text/plain; charset=utf-8", "content-encoding": "gzip"}
    v2 = await world.http.post(
        f"{INFLUX}/api/v2/write?bucket=plant&org=insa&precision=ns",
        content=gzip.compress(lines.encode()),
        headers={**text, "authorization": f"Token {token}"},
    )
    assert (v2.status_code, v2.content) == (204, b""), v2.text
    basic = base64.b64encode(f"telegraf:{token}".encode()).decode()
    v1 = await world.http.post(
        f"{INFLUX}/write?db=telegraf&precision=s",
        content=f"disk,host=press,path=/ free=5i {int(at.timestamp())}\n".encode(),
        headers={"content-type": "text/plain", "authorization": f"Basic {basic}"},
    )
    assert v1.status_code == 204, v1.text
    stored = await world.until_stored(device_id, 3)
    assert {(metric, ts, value) for metric, ts, value in stored} == {
        ("cpu.usage_idle{cpu=cpu0}", at.timestamp(), 91.2),
        ("mem.used", at.timestamp(), 2601230336.0),
        ("disk.free{path=/}", at.timestamp(), 5.0),
    }
    created = await world.http.post(
        f"{INFLUX}/query",
        content=b'q=CREATE+DATABASE+"telegraf"',
        headers={"authorization": f"Token {token}"},
    )
    assert created.status_code == 200
    assert (await world.http.get(f"{INFLUX}/ping")).status_code == 204


async def test_bad_lines_are_a_partial_write_as_influxdb_says_it(world: World) -> None:
    device_id, token = await world.device()
    headers = {"authorization": f"Token {token}"}
    answer = await world.http.post(
        INFLUX, content=b"a value=1\nb value=\nc value=3\n", headers=headers
    )
    assert answer.status_code == 400
    body = answer.json()
    assert body["code"] == "invalid"
    assert body["message"].startswith("partial write: 1 refused")
    assert "line 2" in body["error"]
    assert {metric for metric, _, _ in await world.until_stored(device_id, 2)} == {"a", "c"}

    async def is_kept() -> bool:
        listed = await world.http.get(f"{TELEMETRY}/quarantine", headers=world.headers)
        return [entry["reason"] for entry in listed.json()["items"]] == ["malformed"]

    await until(is_kept, "the bad line lies in the quarantine")
    wrong = await world.http.post(f"{INFLUX}?precision=y", content=b"a value=1", headers=headers)
    assert wrong.status_code == 400
    nobody = await world.http.post(
        INFLUX, content=b"a value=1", headers={"authorization": "Token x"}
    )
    assert nobody.status_code == 401
