"""What was a device's metric, over time?"""

import math
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.historian.point import Kind
from tests.database import PrincipalHeaders
from tests.history import BAD, UNCERTAIN
from tests.service.analytics.conftest import LATER, NOON, World

SECOND = timedelta(seconds=1)


def told(body: dict[str, Any]) -> list[tuple[float, object]]:
    """Return the answer's points as (seconds after noon, value)."""
    return [
        ((datetime.fromisoformat(p["ts"]) - NOON).total_seconds(), p["value"])
        for p in body["points"]
    ]


async def test_the_points_come_back_as_they_were(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.put(
        [
            (NOON - SECOND, 1.0, 0),
            (NOON, 2.0, 0),
            (NOON + SECOND, -3.25, UNCERTAIN),
            (NOON + 2 * SECOND, 99.0, BAD),
            (LATER, 5.0, 0),
        ]
    )
    body = await world.answer("timeseries", series.device_id)
    assert told(body) == [(0, 2.0), (1, -3.25), (2, 99.0)]
    assert [p["quality"] for p in body["points"]] == ["good", "uncertain", "bad"]
    assert body["quality"] == {"good": 1, "uncertain": 1, "bad": 1}
    assert (body["unit"], body["type"], body["function"]) == ("°C", "number", "raw")
    assert datetime.fromisoformat(body["from"]) == NOON
    assert datetime.fromisoformat(body["to"]) == LATER
    assert body["next_from"] is None


async def test_bools_and_texts_keep_their_types(world: World) -> None:
    bools = await world.past.series(world.tenant_id, kind=Kind.BOOL)
    await bools.add(NOON, 1, [1, 0])
    assert told(await world.answer("timeseries", bools.device_id)) == [(0, True), (1, False)]
    texts = await world.past.series(world.tenant_id, kind=Kind.TEXT, unit=None)
    await texts.put([(NOON, "auto", 0), (NOON + SECOND, "off", 0)])
    body = await world.answer("timeseries", texts.device_id)
    assert told(body) == [(0, "auto"), (1, "off")]
    assert (body["type"], body["unit"], body["quality"]["good"]) == ("text", None, 2)
    for function in (
        {"bucket": 60},
        {"function": "rate"},
        {"function": "moving_average", "window": "3"},
    ):
        refused = await world.ask("timeseries", texts.device_id, **function)
        assert refused.status_code == 422


async def test_a_long_answer_is_read_on_from_where_it_was_cut(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON, 1, range(25))
    seen: list[object] = []
    start: str | None = NOON.isoformat()
    while start is not None:
        body = await world.answer("timeseries", series.device_id, limit=10, **{"from": start})
        seen += [p["value"] for p in body["points"]]
        start = body["next_from"]
    assert seen == [float(i) for i in range(25)]


async def test_buckets_sum_up_what_is_not_bad(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.put(
        [
            (NOON + 5 * SECOND, 1.0, 0),
            (NOON + 10 * SECOND, 1000.0, BAD),
            (NOON + 20 * SECOND, 4.0, UNCERTAIN),
            (NOON + 130 * SECOND, 7.0, 0),
        ]
    )
    aggregates = ["min", "max", "mean", "sum", "first", "last", "time_weighted_mean"]
    body = await world.answer(
        "timeseries", series.device_id, bucket="PT1M", aggregate=aggregates, to=NOON + 140 * SECOND
    )
    assert body["quality"] == {"good": 2, "uncertain": 1, "bad": 1}
    assert (body["function"], body["bucket_s"]) == ("bucket", 60)
    first, second = body["points"]
    assert (first["ts"], first["count"], first["value"]) == ("2026-06-01T12:00:00Z", 2, 1.0)
    assert first["values"] == {
        "min": 1,
        "max": 4,
        "mean": 2.5,
        "sum": 5,
        "first": 1,
        "last": 4,
        "time_weighted_mean": pytest.approx((1 * 15 + 4 * 40) / 55),
    }
    # The 4 holds for 10 s more, then 7 until the range ends.
    assert second["values"]["time_weighted_mean"] == pytest.approx((4 * 10 + 7 * 10) / 20)
    assert (second["ts"], second["count"]) == ("2026-06-01T12:02:00Z", 1)


async def test_a_moving_average_reaches_back_before_the_range(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON - 3 * SECOND, 1, [0, 3, 6, 9, 12])
    await series.put([(NOON - timedelta(milliseconds=500), 1e9, BAD)])
    by_points = await world.answer(
        "timeseries", series.device_id, function="moving_average", window="3"
    )
    assert told(by_points) == [(0, 6.0), (1, 9.0)]
    assert [p["count"] for p in by_points["points"]] == [3, 3]
    by_time = await world.answer(
        "timeseries", series.device_id, function="moving_average", window="PT2S"
    )
    assert told(by_time) == [(0, 7.5), (1, 10.5)]
    assert (by_points["window_points"], by_time["window_s"]) == (3, 2)
    assert by_time["quality"] == {"good": 2, "uncertain": 0, "bad": 0}


async def test_a_rate_begins_with_the_change_since_the_last_point_before(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.put(
        [
            (NOON - 2 * SECOND, 10.0, 0),
            (NOON, 14.0, 0),
            (NOON + SECOND, 500.0, BAD),
            (NOON + 4 * SECOND, 12.0, 0),
        ]
    )
    body = await world.answer("timeseries", series.device_id, function="rate")
    assert told(body) == [(0, 2.0), (4, -0.5)]
    body = await world.answer("timeseries", series.device_id, function="rate", per="min")
    assert told(body) == [(0, 120.0), (4, -30.0)]


async def test_the_last_hour_is_what_one_sees_unasked(world: World) -> None:
    now = SystemClock().now()
    series = await world.past.series(world.tenant_id)
    await series.put([(now - timedelta(hours=2), 1.0, 0), (now - timedelta(minutes=5), 2.0, 0)])
    body = await world.answer("timeseries", series.device_id, **{"from": None, "to": None})
    assert [p["value"] for p in body["points"]] == [2.0]


async def test_another_tenants_device_is_as_unknown_as_none_at_all(
    world: World, principal_headers: PrincipalHeaders
) -> None:
    theirs = await world.past.series(uuid4())
    await theirs.add(NOON, 1, [1, 2, 3])
    mine = await world.past.series(world.tenant_id)
    for what in ("timeseries", "statistics"):
        answers = [
            await world.ask(what, theirs.device_id),
            await world.ask(what, uuid4()),
            await world.ask(what, mine.device_id, "pressure"),
        ]
        assert [a.status_code for a in answers] == [404, 404, 404]
        assert len({a.json()["detail"].split(" ", 2)[2] for a in answers}) == 1
    world.headers = principal_headers(world.tenant_id, "devices:read")
    assert (await world.ask("timeseries", mine.device_id)).status_code == 403


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({"from": LATER, "to": NOON}, "?from"),
        ({"from": "0001-01-01T12:00:00Z"}, "?from"),
        ({"to": "2026-06-01T13:00:00"}, "?to"),
        ({"function": "wavelet"}, "?function"),
        ({"function": "bucket"}, "?bucket"),
        ({"bucket": "PT0.1S"}, "?bucket"),
        ({"bucket": 0}, "?bucket"),
        ({"bucket": "nan"}, "?bucket"),
        ({"bucket": 60, "aggregate": "mode"}, "?aggregate"),
        ({"bucket": 60, "function": "raw"}, "?bucket"),
        ({"function": "moving_average"}, "?window"),
        ({"function": "moving_average", "window": "0"}, "?window"),
        ({"function": "moving_average", "window": "often"}, "?window"),
        ({"function": "moving_average", "window": "-PT5M"}, "?window"),
        ({"function": "rate", "per": "day"}, "?per"),
        ({"per": "s"}, "?per"),
        ({"limit": 0}, "?limit"),
        ({"limit": 10_001}, "?limit"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    world: World, query: dict[str, Any], pointer: str
) -> None:
    series = await world.past.series(world.tenant_id)
    refused = await world.ask("timeseries", series.device_id, **query)
    assert refused.status_code == 422, refused.text
    assert [e["pointer"].split("/")[0] for e in refused.json()["errors"]] == [pointer]


async def test_sums_that_no_double_holds_are_refused_and_not_a_fault_of_ours(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON, 1, [1.7e308, 1.7e308, -1.7e308])
    assert (await world.ask("timeseries", series.device_id, bucket=60)).status_code == 422
    body = await world.answer("timeseries", series.device_id, function="moving_average", window="2")
    assert [p["value"] for p in body["points"]] == [1.7e308, None, 0.0]
    assert (await world.ask("statistics", series.device_id)).status_code == 200


async def test_a_bad_point_without_a_value_is_null_and_neither_true_nor_false(world: World) -> None:
    for kind in (Kind.BOOL, Kind.NUMBER):
        series = await world.past.series(world.tenant_id, kind=kind)
        await series.put([(NOON, 1.0, 0), (NOON + SECOND, math.nan, BAD)])
        body = await world.answer("timeseries", series.device_id)
        assert told(body) == [(0, 1.0), (1, None)]
        assert body["quality"]["bad"] == 1
