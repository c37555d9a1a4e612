"""The quarantine: looked into, corrected, replayed, and never too large."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest

from libs.common.errors import Unavailable
from libs.common.events.ingest import Refused, TelemetryReceived
from services.ingest.store.landing import Landing, QuarantineQuota
from services.ingest.store.quarantine import Quarantine
from tests.database import DatabaseUrls, PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

URL = "/api/v1/telemetry/quarantine"
EARLIER = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
AS_JSON = {"content-type": "application/json"}


async def quarantined(
    world: World,
    device_id: UUID,
    payload: bytes,
    *,
    channel: str = "telemetry",
    cut_from: int | None = None,
) -> UUID:
    """Put a message into quarantine, as if it had come three hours ago."""
    entry_id = uuid4()
    await world.query(
        "INSERT INTO ingest.quarantine (tenant_id, id, device_id, received_at, reason, detail,"
        " payload, channel, cut_from) VALUES ($1, $2, $3, $4, 'malformed', 'no JSON', $5, $6, $7)",
        world.tenant_id,
        entry_id,
        device_id,
        EARLIER,
        payload,
        channel,
        cut_from,
    )
    return entry_id


async def replay(world: World, entry_id: UUID, payload: object = None) -> httpx2.Response:
    """Replay an entry, with a corrected payload if one is given."""
    body = b"" if payload is None else json.dumps(payload).encode()
    headers = world.headers | (AS_JSON if body else {})
    return await world.http.post(f"{URL}/{entry_id}/replay", content=body, headers=headers)


async def is_there(world: World, entry_id: UUID) -> bool:
    answer = await world.http.get(f"{URL}/{entry_id}", headers=world.headers)
    assert answer.status_code in (200, 404), answer.text
    return answer.status_code == 200


async def test_an_entry_is_listed_with_its_reason_and_shown_with_its_payload(world: World) -> None:
    device_id, _ = await world.device()
    text = await quarantined(world, device_id, '{"temp": "heiß"'.encode())
    binary = await quarantined(world, device_id, b"\xff\x00")
    listed = (await world.http.get(URL, headers=world.headers)).json()
    assert {entry["id"] for entry in listed["items"]} == {str(text), str(binary)}
    assert listed["overflow"] is None
    assert all("payload" not in entry for entry in listed["items"])

    shown = (await world.http.get(f"{URL}/{text}", headers=world.headers)).json()
    assert (shown["payload"], shown["encoding"]) == ('{"temp": "heiß"', "utf-8")
    assert (shown["channel"], shown["reason"]) == ("telemetry", "malformed")
    assert (shown["size"], shown["cut_from"]) == (16, None)
    shown = (await world.http.get(f"{URL}/{binary}", headers=world.headers)).json()
    assert (base64.b64decode(shown["payload"]), shown["encoding"]) == (b"\xff\x00", "base64")


async def test_an_entry_is_replayed_as_it_was_with_its_own_time_and_is_gone(world: World) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 21.5}')
    answer = await replay(world, entry_id)
    assert answer.status_code == 204, answer.text
    assert await world.until_stored(device_id, 1) == [("temp", EARLIER.timestamp(), 21.5)]
    assert not await is_there(world, entry_id)
    assert (await replay(world, entry_id)).status_code == 404


async def test_an_entry_is_corrected_and_replayed(world: World) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 21,5}')
    assert (await replay(world, entry_id)).status_code == 400
    assert await is_there(world, entry_id)
    ts = EARLIER - timedelta(minutes=1)
    corrected = [{"temp": 21.5}, {"ts": ts.isoformat(), "values": {"temp": 20.5}}]
    assert (await replay(world, entry_id, corrected)).status_code == 204
    assert await world.until_stored(device_id, 2) == [
        ("temp", ts.timestamp(), 20.5),
        ("temp", EARLIER.timestamp(), 21.5),
    ]
    assert not await is_there(world, entry_id)


async def test_what_a_device_sent_wrong_comes_right_by_a_replay(world: World) -> None:
    device_id, token = await world.device()
    answer = await world.http.post(
        "/api/v1/telemetry",
        json=[{"values": {"temp": 1}}, {"values": {"temp": [2]}}, {"values": {"temp": 3}}],
        headers={"authorization": f"Bearer {token}"},
    )
    assert answer.json()["accepted"] == 2
    entries: list[str] = []

    async def is_listed() -> bool:
        listed = await world.http.get(URL, headers=world.headers)
        entries[:] = [entry["id"] for entry in listed.json()["items"]]
        return bool(entries)

    await until(is_listed, "the second reading in quarantine")
    answer = await replay(world, UUID(entries[0]), {"values": {"temp": 2}})
    assert answer.status_code == 204, answer.text
    # None of the three took the other's instant, though none came with a time.
    assert [value for _, _, value in await world.until_stored(device_id, 3)] == [1.0, 2.0, 3.0]


async def test_a_replay_that_dies_before_the_entry_is_gone_loses_nothing_and_stores_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 21.5}')

    async def die(*_: object) -> None:
        raise Unavailable("the database went away")

    with monkeypatch.context() as patch:
        patch.setattr(Quarantine, "discard", die)
        assert (await replay(world, entry_id)).status_code == 503
    assert await is_there(world, entry_id)
    await world.until_stored(device_id, 1)
    assert (await replay(world, entry_id)).status_code == 204
    assert not await is_there(world, entry_id)
    marker = await quarantined(world, device_id, b'{"marker": 1}')
    assert (await replay(world, marker)).status_code == 204
    stored = await world.until_stored(device_id, 2)
    assert sorted(metric for metric, _, _ in stored) == ["marker", "temp"]


async def test_an_entry_that_is_not_safe_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 21.5}')
    monkeypatch.setattr(world.app.state.replays, "_within", timedelta(milliseconds=50))
    publish = world.app.state.intake._publish
    is_up = asyncio.Event()

    async def publish_when_up(messages: list[object]) -> None:
        await is_up.wait()
        await publish(messages)

    monkeypatch.setattr(world.app.state.intake, "_publish", publish_when_up)
    assert (await replay(world, entry_id)).status_code == 503
    assert await is_there(world, entry_id)
    is_up.set()


async def test_what_would_be_refused_again_is_told_and_nothing_of_it_is_taken(world: World) -> None:
    device_id, token = await world.device()
    await world.http.post(
        "/api/v1/telemetry",
        json={"values": {"temp": 1}},
        headers={"authorization": f"Bearer {token}"},
    )
    entry_id = await quarantined(world, device_id, b"{")
    for payload, pointers in (
        ([{"flow": 1}, {"ts": 1, "values": {"flow": 2}}, {"temp": "hot"}], ["#/1", "#/2"]),
        ({"flow": None}, ["#"]),
        ({"values": {}}, ["#"]),
        ([], ["#"]),
        (3, ["#"]),
    ):
        answer = await replay(world, entry_id, payload)
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == pointers
    assert await is_there(world, entry_id)
    listed = await world.http.get(URL, headers=world.headers)
    assert len(listed.json()["items"]) == 1
    assert {metric for metric, _, _ in await world.until_stored(device_id, 1)} == {"temp"}


async def test_metrics_beyond_the_device_s_limit_are_not_taken_by_a_replay(world: World) -> None:
    device_id, _ = await world.device()
    many = {f"metric-{n}": n for n in range(1_001)}
    entry_id = await quarantined(world, device_id, json.dumps(many).encode())
    answer = await replay(world, entry_id)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["reason"].startswith("too_many_metrics")
    assert await world.stored(device_id) == []


async def test_an_alarm_is_replayed_as_an_alarm_and_once(world: World) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"msg": "oil low"}', channel="alerts")
    assert (await replay(world, entry_id)).status_code == 422
    corrected = {"message": "oil low", "key": "oil"}
    answers = await asyncio.gather(*(replay(world, entry_id, corrected) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404, 404, 404]
    [row] = await world.query(
        "SELECT convert_from(body, 'utf-8') AS body FROM bus.log"
        " WHERE type = 'device.alert_reported.v1' AND tenant_id = $1",
        world.tenant_id,
    )
    said = json.loads(row["body"])
    assert (said["message"], datetime.fromisoformat(said["at"])) == ("oil low", EARLIER)
    assert await world.stored(device_id) == []


async def test_a_status_is_replayed_as_a_status(world: World) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"status": "on"}', channel="status")
    corrected = {"status": "online", "reason": "booted"}
    assert (await replay(world, entry_id, corrected)).status_code == 204
    device = await world.http.get(f"/api/v1/devices/{device_id}", headers=world.headers)
    assert device.json()["status_reason"] == "booted"


async def test_of_what_was_cut_the_whole_is_asked_for(world: World) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 2', cut_from=300_000)
    assert (await replay(world, entry_id)).status_code == 409
    assert (await replay(world, entry_id, {"temp": 21.5})).status_code == 204
    await world.until_stored(device_id, 1)


@pytest.mark.parametrize("channel", ["telemetry", "alerts"])
async def test_a_device_that_is_no_more_says_nothing_more(world: World, channel: str) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"message": "hot"}', channel=channel)
    await world.http.delete(f"/api/v1/devices/{device_id}", headers=world.headers)
    assert (await replay(world, entry_id)).status_code == 409
    assert await is_there(world, entry_id)


async def test_who_may_only_read_replays_nothing(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    device_id, _ = await world.device()
    entry_id = await quarantined(world, device_id, b'{"temp": 1}')
    reader = principal_headers(world.tenant_id, "telemetry:read")
    assert (await world.http.get(f"{URL}/{entry_id}", headers=reader)).status_code == 200
    answer = await world.http.post(f"{URL}/{entry_id}/replay", headers=reader)
    assert answer.status_code == 403
    answer = await world.http.post(
        f"{URL}/{entry_id}/replay", content=b"<a/>", headers=world.headers
    )
    assert answer.status_code == 415
    assert await is_there(world, entry_id)


class Full:
    """A quarantine for ten entries, or 10,000 bytes."""

    def __init__(self, landing: Landing, connection: asyncpg.Connection) -> None:
        self.landing = landing
        self.connection = connection

    async def refuse(self, tenant_id: UUID, payloads: list[bytes], at: datetime = EARLIER) -> int:
        """Let messages be refused, a microsecond apart; return how many entries gave way."""
        first = int(at.timestamp()) * 1_000_000
        batch = TelemetryReceived(
            at=at,
            shard=0,
            tenants=b"",
            series=b"",
            ts=b"",
            values=b"",
            quality=b"",
            refused=[
                Refused(
                    tenant_id, uuid4(), "malformed", "", None, payload, received_at=first + number
                )
                for number, payload in enumerate(payloads)
            ],
        )
        landed = await self.landing.land([batch])
        assert landed.quarantined == len(payloads)
        return landed.displaced

    async def kept(self, tenant_id: UUID) -> list[bytes]:
        rows = await self.connection.fetch(
            "SELECT payload FROM ingest.quarantine WHERE tenant_id = $1 ORDER BY received_at",
            tenant_id,
        )
        return [row["payload"] for row in rows]


@pytest.fixture
async def full(database_urls: DatabaseUrls) -> AsyncIterator[Full]:
    connection = await asyncpg.connect(database_urls.admin)
    landing = Landing(database_urls.writer, quota=QuarantineQuota(rows=10, payload_bytes=10_000))
    await landing.open()
    yield Full(landing, connection)
    await landing.close()
    await connection.close()


async def test_the_oldest_entries_give_way_and_are_counted(full: Full) -> None:
    tenant, other = uuid4(), uuid4()
    assert await full.refuse(other, [b"theirs"] * 10) == 0
    assert await full.refuse(tenant, [b"%d" % n for n in range(10)]) == 0
    later = EARLIER + timedelta(seconds=1)
    # Eleven are too many; then a tenth of them goes beyond what is.
    assert await full.refuse(tenant, [b"10"], later) == 2
    assert await full.kept(tenant) == [b"%d" % n for n in range(2, 11)]
    assert await full.refuse(tenant, [b"11", b"12"], later + timedelta(seconds=1)) == 2
    assert await full.kept(other) == [b"theirs"] * 10
    overflow = await full.connection.fetchrow(
        "SELECT * FROM ingest.quarantine_overflow WHERE tenant_id = $1", tenant
    )
    assert overflow is not None
    assert overflow["dropped"] == 4
    assert overflow["since"] < overflow["latest"]


async def test_few_large_entries_fill_it_too(full: Full) -> None:
    tenant = uuid4()
    assert await full.refuse(tenant, [b"a" * 3_000, b"b" * 3_000, b"c" * 3_000]) == 0
    assert await full.refuse(tenant, [b"d" * 2_000], EARLIER + timedelta(seconds=1)) == 1
    assert [payload[:1] for payload in await full.kept(tenant)] == [b"b", b"c", b"d"]


async def test_writers_that_refuse_for_the_same_tenants_at_once_keep_to_the_quota(
    full: Full, database_urls: DatabaseUrls
) -> None:
    tenants = [uuid4() for _ in range(3)]
    at = [EARLIER + timedelta(seconds=n) for n in range(20)]
    await asyncio.gather(
        *(full.refuse(tenant, [b"x"] * 5, moment) for tenant in tenants for moment in at)
    )
    for tenant in tenants:
        last = await full.refuse(tenant, [b"last"], at[-1] + timedelta(seconds=1))
        dropped = await full.connection.fetchval(
            "SELECT dropped FROM ingest.quarantine_overflow WHERE tenant_id = $1", tenant
        )
        kept = await full.kept(tenant)
        assert last >= 0
        assert len(kept) <= 10
        assert len(kept) + dropped == 101


async def test_the_tenant_sees_how_much_is_no_longer_there(world: World, full: Full) -> None:
    await full.refuse(world.tenant_id, [b"x"] * 30)
    listed = (await world.http.get(URL, headers=world.headers)).json()
    assert len(listed["items"]) == 9
    assert listed["overflow"]["dropped"] == 21
    assert listed["overflow"]["since"] == listed["overflow"]["latest"]
