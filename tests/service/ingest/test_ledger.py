"""The ledger: all that came was stored, was there already, or lies in quarantine; nothing else."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from libs.common.events.ingest import Gap, TelemetryReceived
from services.ingest.domain.channel import Channel
from services.ingest.settings import Settings
from services.ingest.store.landing import Landing, QuarantineQuota
from services.ingest.store.ledger import MOST_MISSING, Folding
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.ledger import ROWS_AT_ONCE
from tests.database import PrincipalHeaders
from tests.service.ingest.conftest import World
from tests.waiting import until

COUNTS = ("received", "accepted", "duplicates", "quarantined", "gaps", "missing")


async def send(world: World, token: str, *readings: dict[str, Any]) -> None:
    """Send readings as a device; all are durable afterwards."""
    answer = await world.http.post(
        "/api/v1/telemetry", json=list(readings), headers={"authorization": f"Bearer {token}"}
    )
    assert answer.status_code == 202, answer.text


async def totals(world: World, device_id: UUID | None = None) -> dict[str, int]:
    """Return a device's totals of the last day, or the tenant's."""
    path = "/api/v1/telemetry/ledger"
    if device_id is not None:
        path = f"/api/v1/devices/{device_id}/ledger"
    answer = await world.http.get(path, headers=world.headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    for name in COUNTS:
        assert body["totals"][name] == sum(hour[name] for hour in body["hours"])
    counted: dict[str, int] = body["totals"]
    assert (
        counted["received"] == counted["accepted"] + counted["duplicates"] + counted["quarantined"]
    )
    return counted


async def until_received(world: World, device_id: UUID, count: int) -> dict[str, int]:
    """Wait until so much is counted of a device; return the totals."""

    async def there() -> bool:
        return (await totals(world, device_id))["received"] >= count

    await until(there, f"{count} received")
    return await totals(world, device_id)


def at(seconds: int) -> str:
    """Return a time not long ago, later for a greater number."""
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()


async def test_what_comes_is_counted_by_what_became_of_it(world: World) -> None:
    device_id, token = await world.device()
    await send(world, token, *({"ts": at(n), "values": {"temp": n, "rpm": n}} for n in range(10)))
    await send(world, token, *({"ts": at(n), "values": {"temp": 0.0}} for n in range(5, 12)))
    await send(world, token, {"values": {"temp": "hot", "note": "x" * 5000}})
    counted = await until_received(world, device_id, 29)
    assert counted == {
        "received": 29,
        "accepted": 22,
        "duplicates": 5,
        "quarantined": 2,
        "gaps": 0,
        "missing": 0,
    }
    assert len(await world.stored(device_id)) == counted["accepted"]


async def test_texts_are_counted_like_numbers(world: World) -> None:
    device_id, token = await world.device()
    for _ in range(2):
        await send(world, token, {"ts": at(1), "values": {"state": "open", "temp": 1.5}})
    counted = await until_received(world, device_id, 4)
    assert (counted["accepted"], counted["duplicates"]) == (2, 2)


async def test_a_message_with_many_bad_points_counts_them_all(world: World) -> None:
    device_id, token = await world.device()
    await send(world, token, *({"ts": "yesterday", "values": {"temp": n}} for n in range(50)))
    counted = await until_received(world, device_id, 50)
    assert counted["quarantined"] == 50
    entries = await world.http.get("/api/v1/telemetry/quarantine", headers=world.headers)
    assert len(entries.json()["items"]) == 1


async def test_alarms_in_quarantine_are_no_points(world: World) -> None:
    device_id, token = await world.device()
    source = await world.app.state.sources.login(token)
    world.app.state.intake.refuse_message(
        source,
        "malformed",
        "no alarm",
        b"?",
        lambda: None,
        received_at=datetime.now(UTC),
        channel=Channel.ALERTS,
    )
    await send(world, token, {"values": {"temp": 1}})
    assert (await until_received(world, device_id, 1))["quarantined"] == 0


async def test_what_a_device_left_out_is_counted(world: World) -> None:
    device_id, token = await world.device()
    source = await world.app.state.sources.login(token)
    inlet = Inlet(world.app.state.reception, source)
    for seq in (5, 6, 9, 8, 10, 14, 0, 1, 3):
        payload = f'{{"seq": {seq}, "values": {{"temp": {seq}}}}}'.encode()
        inlet.take(Channel.TELEMETRY, payload, datetime.now(UTC), lambda: None)
    counted = await until_received(world, device_id, 9)
    assert (counted["gaps"], counted["missing"]) == (3, 2 + 3 + 1)
    assert counted["quarantined"] == 0


async def test_a_counter_that_names_any_number_holds_up_nobody(
    world: World, settings: Settings
) -> None:
    device_id, token = await world.device()
    leaps = [{"seq": n % 2 * 2**53, "values": {"temp": n}} for n in range(3_000)]
    await send(world, token, *leaps)
    counted = await until_received(world, device_id, 3_000)
    assert (counted["accepted"], counted["missing"]) == (3_000, 0)
    # Nor does what another door, or an older release, says of it.
    source = await world.app.state.sources.login(token)
    batch = _batch(source.tenant, source.series["temp"].id, range(3), datetime.now(UTC))
    said = Gap(world.tenant_id, device_id, 2**63)
    landing = Landing(settings.historian_writer_url.get_secret_value(), quota=QuarantineQuota())
    await landing.open()
    try:
        landed = await landing.land([msgspec.structs.replace(batch, gaps=[said, said])])
    finally:
        await landing.close()
    assert landed.stored == 3
    counted = await until_received(world, device_id, 3_003)
    assert (counted["gaps"], counted["missing"]) == (2, MOST_MISSING)


async def test_the_hour_is_that_of_receipt(world: World) -> None:
    device_id, token = await world.device()
    await send(world, token, {"ts": at(0), "values": {"temp": 1}})
    await until_received(world, device_id, 1)
    body = (
        await world.http.get(f"/api/v1/devices/{device_id}/ledger", headers=world.headers)
    ).json()
    (hour,) = body["hours"]
    now = datetime.now(UTC)
    assert now - timedelta(hours=1, minutes=1) < datetime.fromisoformat(hour["hour"]) <= now
    before = await world.http.get(
        f"/api/v1/devices/{device_id}/ledger",
        params={"from": "2025-12-31T00:00:00Z", "to": "2026-01-02T00:00:00Z"},
        headers=world.headers,
    )
    assert (before.json()["hours"], before.json()["totals"]["received"]) == ([], 0)


async def test_the_tenant_sees_all_its_devices_together_and_no_others(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    devices = [await world.device() for _ in range(3)]
    for device_id, token in devices:
        await send(world, token, *({"ts": at(n), "values": {"temp": n}} for n in range(4)))
        await until_received(world, device_id, 4)
    assert (await totals(world))["accepted"] == 12
    stranger = principal_headers(uuid4())
    path = f"/api/v1/devices/{devices[0][0]}/ledger"
    assert (await world.http.get(path, headers=stranger)).status_code == 404
    others = await world.http.get("/api/v1/telemetry/ledger", headers=stranger)
    assert others.json()["totals"]["received"] == 0
    none = principal_headers(world.tenant_id, "devices:read")
    assert (await world.http.get(path, headers=none)).status_code == 403


@pytest.mark.parametrize(
    "asked",
    [
        {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
        {"from": "2020-01-01T00:00:00Z"},
        {"from": "2026-01-02"},
    ],
)
async def test_a_range_that_makes_no_sense_is_refused(world: World, asked: dict[str, str]) -> None:
    answer = await world.http.get("/api/v1/telemetry/ledger", params=asked, headers=world.headers)
    assert answer.status_code == 422, answer.text


async def test_replaying_what_lay_in_quarantine_changes_nothing_of_the_past(world: World) -> None:
    device_id, token = await world.device()
    await send(world, token, {"ts": at(1), "values": {"temp": 20.5}})
    await send(world, token, {"values": {"temp": "hot"}})
    await until_received(world, device_id, 2)
    (entry,) = (await world.http.get("/api/v1/telemetry/quarantine", headers=world.headers)).json()[
        "items"
    ]
    replayed = await world.http.post(
        f"/api/v1/telemetry/quarantine/{entry['id']}/replay",
        json={"values": {"temp": 21.0}},
        headers=world.headers,
    )
    assert replayed.status_code == 204, replayed.text
    counted = await until_received(world, device_id, 3)
    assert (counted["accepted"], counted["quarantined"]) == (2, 1)


async def test_a_batch_that_is_delivered_twice_counts_once(
    world: World, settings: Settings
) -> None:
    device_id, token = await world.device()
    await send(world, token, {"ts": at(0), "values": {"temp": 0}})
    await until_received(world, device_id, 1)
    source = await world.app.state.sources.login(token)
    batch = _batch(source.tenant, source.series["temp"].id, range(1, 6), datetime.now(UTC))
    landing = Landing(settings.historian_writer_url.get_secret_value(), quota=QuarantineQuota())
    await landing.open()
    try:
        for _ in range(3):
            await landing.land([batch])
    finally:
        await landing.close()
    counted = await totals(world, device_id)
    assert (counted["accepted"], counted["duplicates"]) == (6, 0)


async def test_batches_of_two_hours_in_one_transaction_are_counted_in_their_own(
    world: World, settings: Settings
) -> None:
    device_id, token = await world.device()
    await send(world, token, {"ts": at(0), "values": {"temp": 0}})
    await until_received(world, device_id, 1)
    source = await world.app.state.sources.login(token)
    series = source.series["temp"].id
    now = datetime.now(UTC)
    landing = Landing(settings.historian_writer_url.get_secret_value(), quota=QuarantineQuota())
    await landing.open()
    try:
        landed = await landing.land(
            [
                _batch(source.tenant, series, range(4), now - timedelta(hours=2)),
                _batch(source.tenant, series, range(2, 8), now - timedelta(hours=3)),
            ]
        )
    finally:
        await landing.close()
    assert (landed.stored, landed.duplicates) == (7, 3)
    body = (
        await world.http.get(f"/api/v1/devices/{device_id}/ledger", headers=world.headers)
    ).json()
    assert [(hour["accepted"], hour["duplicates"]) for hour in body["hours"]] == [
        (4, 2),
        (3, 1),
        (1, 0),
    ]


async def test_however_many_add_up_at_once_each_row_counts_once(world: World) -> None:
    device_id, token = await world.device()
    folding: Folding = world.app.state.bookkeeping._folding
    for start in range(0, 60, 10):
        await send(world, token, *({"ts": at(start + n), "values": {"t": n}} for n in range(10)))
        newest = await folding.newest()
        await asyncio.gather(*(folding.fold(3, newest) for _ in range(4)))
    assert (await until_received(world, device_id, 60))["accepted"] == 60
    assert await world.query("SELECT * FROM ingest.ledger_log") == []


async def test_however_much_was_written_down_all_of_it_is_in_the_ledger_when_asked(
    world: World,
) -> None:
    device_id, _ = await world.device()
    rows = 24 * ROWS_AT_ONCE
    await world.query(
        "INSERT INTO ingest.ledger_log"
        " (hour, series, stored, duplicates, tenants, devices, quarantined, gaps, missing)"
        " SELECT date_trunc('hour', now()), '', '', '', ARRAY[$1::uuid], ARRAY[$2::uuid], '{1}', '{0}',"
        " '{0}' FROM generate_series(1, $3)",
        world.tenant_id,
        device_id,
        rows,
    )
    assert (await totals(world, device_id))["quarantined"] == rows


async def test_hours_long_over_are_forgotten(world: World) -> None:
    device_id, token = await world.device()
    await send(world, token, {"values": {"temp": 1}})
    await until_received(world, device_id, 1)
    folding: Folding = world.app.state.bookkeeping._folding
    await folding.trim(timedelta(days=1))
    assert (await totals(world, device_id))["received"] == 1
    await world.query("UPDATE ingest.ledger SET hour = hour - interval '2 days'")
    await folding.trim(timedelta(days=1))
    assert await world.query("SELECT * FROM ingest.ledger WHERE device_id = $1", device_id) == []


def _batch(tenant: int, series: int, seconds: range, received: datetime) -> TelemetryReceived:
    count = len(seconds)
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

    def column(values: list[int], size: int) -> bytes:
        return b"".join(value.to_bytes(size, "little") for value in values)

    return TelemetryReceived(
        at=received,
        shard=0,
        tenants=column([tenant] * count, 4),
        series=column([series] * count, 4),
        ts=column([start + second * 1_000_000 for second in seconds], 8),
        values=bytes(8 * count),
        quality=bytes(count),
    )
