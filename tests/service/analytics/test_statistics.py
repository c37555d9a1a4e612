"""What can be said of a metric over a range."""

from uuid import uuid4

import pytest

from tests.history import BAD
from tests.service.analytics.conftest import LATER, NOON, World


async def test_an_hours_statistics(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON, 10, [2, 4, 4, 4, 5, 5, 7, 9])
    await series.put([(LATER, 1e6, 0)])
    body = await world.answer("statistics", series.device_id)
    assert body["count"] == 8
    assert (body["mean"], body["median"], body["min"], body["max"], body["range"]) == (
        5,
        4.5,
        2,
        9,
        7,
    )
    assert body["variance"] == pytest.approx(32 / 7)
    assert body["std"] == pytest.approx((32 / 7) ** 0.5)
    assert body["cv"] == pytest.approx((32 / 7) ** 0.5 / 5)
    assert body["percentiles"].keys() == {"5", "25", "75", "95"}
    assert body["percentiles"]["25"] == 4
    assert body["first"] == {"ts": "2026-06-01T12:00:00Z", "value": 2}
    assert body["last"] == {"ts": "2026-06-01T12:01:10Z", "value": 9}


async def test_bad_points_count_as_such_and_as_nothing_else(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON, 10, [1, 3])
    await series.put([(LATER.replace(hour=12, minute=30), 500.0, BAD)])
    body = await world.answer("statistics", series.device_id, percentile=[0, 99.9, 100])
    assert body["quality"] == {"good": 2, "uncertain": 0, "bad": 1}
    assert (body["count"], body["max"], body["last"]["value"]) == (2, 3, 3)
    assert body["percentiles"] == {"0": 1, "99.9": pytest.approx(2.998), "100": 3}


async def test_of_an_empty_range_nothing_is_said(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    body = await world.answer("statistics", series.device_id)
    assert (body["count"], body["mean"], body["first"], body["percentiles"]["5"]) == (
        0,
        None,
        None,
        None,
    )


async def test_a_range_with_too_many_points_is_refused(world: World) -> None:
    series = await world.past.series(world.tenant_id)
    await series.add(NOON, 0.5, range(5_001))
    refused = await world.ask("statistics", series.device_id)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "?from")


async def test_percentiles_beyond_a_hundred_are_refused(world: World) -> None:
    refused = await world.ask("statistics", uuid4(), percentile=101)
    assert refused.status_code == 422
