"""Profiles: declared once, followed at once by whoever is connected."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.common.historian.point import Kind
from services.ingest.domain.device import Source
from tests.service.ingest.conftest import World
from tests.waiting import until

PRESS: dict[str, Any] = {
    "name": "press",
    "description": "hydraulic",
    "metrics": {"temp": {"kind": "number", "unit": "degC", "minimum": -20, "maximum": 90}},
    "protocol": "mqtt",
    "payload_format": "json",
    "fields": {"t": "temp"},
    "offline_after": 300,
}


async def profile(world: World, **fields: object) -> dict[str, Any]:
    answer = await world.http.post(
        "/api/v1/device-profiles", json={**PRESS, **fields}, headers=world.headers
    )
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def patch(world: World, path: str, **changes: object) -> dict[str, Any]:
    answer = await world.http.patch(f"/api/v1/{path}", json=changes, headers=world.headers)
    assert answer.status_code == 200, answer.text
    changed: dict[str, Any] = answer.json()
    return changed


async def test_a_profile_is_read_as_it_was_written(world: World) -> None:
    made = await profile(world)
    read = await world.http.get(f"/api/v1/device-profiles/{made['id']}", headers=world.headers)
    assert read.json() == made
    assert {name: made[name] for name in PRESS} == {
        **PRESS,
        "metrics": {"temp": {"kind": "number", "unit": "degC", "minimum": -20, "maximum": 90}},
    }
    changed = await patch(world, f"device-profiles/{made['id']}", offline_after=None)
    assert changed["offline_after"] is None
    assert changed["metrics"] == made["metrics"]
    assert changed["version"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": {"temp": {"unit": "bananas"}}},
        {"metrics": {"temp": {"minimum": 2, "maximum": 1}}},
        {"metrics": {"on": {"kind": "bool", "unit": "degC"}}},
        {"metrics": {"": {}}},
        {"protocol": "pigeon"},
        {"offline_after": 0},
        {"tenant_id": str(uuid4())},
    ],
)
async def test_what_cannot_be_is_refused(world: World, wrong: dict[str, object]) -> None:
    answer = await world.http.post(
        "/api/v1/device-profiles", json={**PRESS, **wrong}, headers=world.headers
    )
    assert answer.status_code == 422, answer.text


async def test_names_are_unique_and_a_profile_in_use_stays(world: World) -> None:
    made = await profile(world)
    again = await world.http.post("/api/v1/device-profiles", json=PRESS, headers=world.headers)
    assert again.status_code == 409
    device_id, _ = await world.device()
    await patch(world, f"devices/{device_id}", profile_id=made["id"])
    path = f"/api/v1/device-profiles/{made['id']}"
    assert (await world.http.delete(path, headers=world.headers)).status_code == 409
    await patch(world, f"devices/{device_id}", profile_id=None)
    assert (await world.http.delete(path, headers=world.headers)).status_code == 204


async def test_what_a_profile_declares_reaches_a_connected_device_at_once(world: World) -> None:
    device_id, token = await world.device()
    source: Source = await world.app.state.sources.login(token)
    assert source.profile is None
    made = await profile(world)
    await patch(world, f"devices/{device_id}", profile_id=made["id"])
    await until(lambda: source.profile is not None, "the device has its profile")
    assert source.profile is not None
    assert source.profile.id == UUID(made["id"])
    assert source.profile.metrics["temp"].kind is Kind.NUMBER
    await patch(
        world, f"device-profiles/{made['id']}", metrics={"temp": {"unit": "kelvin"}}, fields={}
    )
    await until(lambda: source.profile is not None and source.profile.version == 2, "version 2")
    assert source.profile.metrics["temp"].unit == "kelvin"
    await patch(world, f"devices/{device_id}", profile_id=None)
    await until(lambda: source.profile is None, "the device has no profile")


async def test_a_login_knows_the_profile_whoever_asks(world: World) -> None:
    made = await profile(world)
    device_id, token = await world.device()
    await patch(world, f"devices/{device_id}", profile_id=made["id"])
    source: Source = await world.app.state.sources.login(token)
    assert source.profile is not None
    assert source.profile.offline_after is not None
    assert source.profile.offline_after.total_seconds() == 300
    world.app.state.sources.revoke(device_id, "for the test")
    asked: Source = await world.app.state.sources.of_tenant(world.tenant_id, device_id)
    assert asked.profile == source.profile


async def test_a_profile_that_is_not_there_is_not_given(world: World) -> None:
    device_id, _ = await world.device()
    for field in ("profile_id", "group_id"):
        answer = await world.http.patch(
            f"/api/v1/devices/{device_id}", json={field: str(uuid4())}, headers=world.headers
        )
        assert answer.status_code == 404


async def test_a_change_of_what_somebody_else_changed_is_refused(world: World) -> None:
    made = await profile(world)
    path = f"/api/v1/device-profiles/{made['id']}"
    await patch(world, f"device-profiles/{made['id']}", description="new")
    answer = await world.http.patch(
        path, json={"description": "newer"}, headers={**world.headers, "if-match": '"1"'}
    )
    assert answer.status_code == 412
