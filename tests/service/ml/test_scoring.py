"""Telemetry in, anomalies out."""

from datetime import datetime
from uuid import UUID, uuid4

import pytest

from tests.history import BAD
from tests.service.ml.conftest import NOON, World


async def test_a_bearing_begins_to_shake(world: World) -> None:
    series = await world.trained_series()
    model = await world.model(series)
    await world.send(series, (0, 51), (1, 49))
    assert world.heard == []
    await world.send(series, (2, 60), (3, 80), (4, 70))
    [event] = world.heard
    assert (event.tenant_id, event.device_id) == (world.tenant_id, series.device_id)
    assert (event.model_id, event.metric) == (UUID(model["id"]), "vibration")
    assert (event.value, event.expected) == (60, 50)
    assert event.score == pytest.approx(10 / 1.4826 / (10 / 1.4826 + 3.5))
    assert (event.ts - NOON).total_seconds() == 2
    [anomaly] = await world.anomalies()
    assert UUID(anomaly["id"]) == event.anomaly_id
    assert (anomaly["value"], anomaly["peak_value"], anomaly["points"]) == (60, 80, 3)
    assert (anomaly["ended_at"], anomaly["expected"]) == (None, 50)
    assert (await world.call("GET", f"/anomalies/{anomaly['id']}")).json() == anomaly


async def test_it_is_said_again_only_after_it_was_calm_for_a_while(world: World) -> None:
    series = await world.trained_series()
    await world.model(series)
    await world.send(series, (0, 60), (1, 50), (2, 50), (3, 60))
    await world.send(series, (4, 50), (5, 50))
    await world.send(series, (6, 60))
    assert len(world.heard) == 1
    await world.send(series, (7, 50), (8, 50), (9, 50))
    [anomaly] = await world.anomalies()
    assert (datetime.fromisoformat(anomaly["ended_at"]) - NOON).total_seconds() == 9
    await world.send(series, (10, 40))
    assert [event.value for event in world.heard] == [60, 40]
    assert [a["value"] for a in await world.anomalies()] == [40, 60]


async def test_the_same_batch_again_says_nothing_again(stopped: World) -> None:
    async with stopped.running():
        series = await stopped.trained_series()
        await stopped.model(series)
        batch = await stopped.send(series, (0, 60), (1, 50), (2, 50), (3, 50), (4, 99))
        assert [event.value for event in stopped.heard] == [60, 99]
        await stopped.resend(batch, batch)
    async with stopped.running():
        await stopped.resend(batch)
        assert [event.value for event in stopped.heard] == [60, 99]
        assert len(await stopped.anomalies()) == 2


async def test_an_excursion_goes_on_in_the_next_worker(stopped: World) -> None:
    async with stopped.running():
        series = await stopped.trained_series()
        await stopped.model(series)
        await stopped.send(series, (0, 60), (1, 50))
    async with stopped.running():
        await stopped.send(series, (2, 70), (3, 50), (4, 50))
        await stopped.send(series, (5, 50))
        assert len(stopped.heard) == 1
        [anomaly] = await stopped.anomalies()
        assert (anomaly["points"], anomaly["peak_value"]) == (2, 70)
        assert anomaly["ended_at"] is not None


async def test_late_and_bad_points_wake_nobody(world: World) -> None:
    series = await world.trained_series()
    await world.model(series)
    await world.send(series, (10, 50))
    await world.send(series, (5, 99))
    await world.send(series, (11, 99), quality=BAD)
    assert world.heard == []
    await world.send(series, (12, 99))
    assert [event.value for event in world.heard] == [99]


async def test_a_model_sees_its_own_series_alone(world: World) -> None:
    series, other = await world.trained_series(), await world.trained_series("pressure")
    await world.model(series)
    foreign = await world.past.series(uuid4(), series.device_id, "vibration")
    await world.send(other, (0, 99))
    await world.send(foreign, (0, 99))
    assert world.heard == []


async def test_a_model_trained_anew_judges_by_what_it_learnt_and_a_deleted_one_not_at_all(
    world: World,
) -> None:
    series = await world.trained_series()
    model = await world.model(series)
    await world.send(series, (0, 90))
    await series.add(NOON, 1, [80, 90, 100] * 10)
    train = {"from": NOON.isoformat(), "to": NOON.replace(minute=5).isoformat()}
    await world.call("POST", f"/models/{model['id']}/train", {"train": train})
    await world.settled()
    [anomaly] = await world.anomalies()
    assert anomaly["ended_at"] is not None
    await world.send(series, (40, 90))
    await world.send(series, (41, 30))
    assert [(e.value, e.expected) for e in world.heard] == [(90, 50), (30, 90)]
    told = len(world.heard)
    assert (await world.call("DELETE", f"/models/{model['id']}")).status_code == 204
    await world.settled()
    await world.send(series, (50, 1e9))
    assert len(world.heard) == told
    assert all(a["ended_at"] for a in await world.anomalies())


async def test_anomalies_are_found_by_model_device_and_time_a_page_at_a_time(world: World) -> None:
    series, other = await world.trained_series(), await world.trained_series()
    model, _ = await world.model(series, calm_points=1), await world.model(other)
    for s in range(0, 10, 2):
        await world.send(series, (s, 60 + s), (s + 1, 50))
    await world.send(other, (0, 99))
    assert len(await world.anomalies()) == 6
    assert len(await world.anomalies(f"?model_id={model['id']}")) == 5
    assert len(await world.anomalies(f"?device_id={other.device_id}")) == 1
    some = f"?model_id={model['id']}&from=2026-06-01T12:00:02Z&to=2026-06-01T12:00:08Z"
    assert [a["value"] for a in await world.anomalies(some)] == [66, 64, 62]
    page = (await world.call("GET", f"/anomalies{some}&limit=2")).json()
    rest = (
        await world.call("GET", f"/anomalies{some}&limit=2&cursor={page['next_cursor']}")
    ).json()
    assert [a["value"] for a in page["items"] + rest["items"]] == [66, 64, 62]
    assert rest["next_cursor"] is None
    theirs = await world.call("GET", "/anomalies", tenant_id=uuid4())
    assert theirs.json()["items"] == []


async def test_old_points_are_not_judged_and_one_ahead_of_its_time_hides_none(
    world: World,
) -> None:
    series = await world.trained_series()
    await world.model(series)
    await world.send(series, (-300 * 86_400, 99), (-301, 99), received=0)
    assert world.heard == []
    await world.send(series, (290, 50), received=0)
    ahead = await world.send(series, (291, 50), (292, 71), received=1)
    await world.resend(ahead)
    await world.send(series, (2, 72))
    assert [event.value for event in world.heard] == [71]
    [anomaly] = await world.anomalies()
    assert (anomaly["points"], anomaly["peak_value"]) == (2, 72)
