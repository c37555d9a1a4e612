"""Enrolment: once, whatever happened before."""

import stat
from pathlib import Path

import pytest

from clients.simulator.plant import DEVICES
from clients.simulator.simulation import DEMO_PUMP
from clients.simulator.station import (
    Credential,
    Platform,
    PlatformRefused,
    enrol,
    ensure_demo_rule,
    read_state,
    write_state,
)
from tests.service.simulator.conftest import EMAIL, PASSWORD, FakePlatform


async def enrol_at(platform: FakePlatform, path: Path) -> dict[str, Credential]:
    async with Platform(platform.url, EMAIL, PASSWORD) as api:
        return await enrol(api, DEVICES, path)


def tokens(credentials: dict[str, Credential]) -> dict[str, str]:
    return {credential.id: credential.token for credential in credentials.values()}


async def test_a_new_station_registers_each_device_with_its_type(
    platform: FakePlatform, tmp_path: Path
) -> None:
    credentials = await enrol_at(platform, tmp_path / "run" / "state.json")

    registered = {str(d["name"]): str(d["type"]) for d in platform.devices.values()}
    assert registered == DEVICES
    assert tokens(credentials) == platform.tokens


async def test_a_restarted_station_changes_nothing(platform: FakePlatform, tmp_path: Path) -> None:
    first = await enrol_at(platform, tmp_path / "state.json")
    assert await enrol_at(platform, tmp_path / "state.json") == first
    assert len(platform.devices) == len(DEVICES)
    assert platform.rotations == []


async def test_only_the_owner_may_read_the_credentials(
    platform: FakePlatform, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    path.write_text("{}")
    path.chmod(0o644)
    await enrol_at(platform, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_device_whose_credential_was_lost_is_rotated(
    platform: FakePlatform, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    first = await enrol_at(platform, path)
    state = read_state(path)
    del state.devices["pump-3"]
    write_state(path, state)

    second = await enrol_at(platform, path)

    assert platform.rotations == [first["pump-3"].id]
    assert tokens(second) == platform.tokens


async def test_a_damaged_state_file_costs_a_rotation_of_each_device(
    platform: FakePlatform, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    await enrol_at(platform, path)
    path.write_text('{"devices": {"pump-1"')
    credentials = await enrol_at(platform, path)
    assert len(platform.rotations) == len(DEVICES)
    assert tokens(credentials) == platform.tokens


async def test_a_device_that_was_deleted_is_registered_again(
    platform: FakePlatform, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    first = await enrol_at(platform, path)
    del platform.devices[first["pump-1"].id]
    del platform.tokens[first["pump-1"].id]
    second = await enrol_at(platform, path)
    assert second["pump-1"].id != first["pump-1"].id
    assert tokens(second) == platform.tokens


async def test_the_demo_rule_is_created_once(platform: FakePlatform) -> None:
    async with Platform(platform.url, EMAIL, PASSWORD) as api:
        assert await ensure_demo_rule(api, DEMO_PUMP, "an id")
        assert not await ensure_demo_rule(api, DEMO_PUMP, "an id")
    (rule,) = platform.rules
    assert rule["condition"] == {"operator": "gt", "value": 90, "clear_value": 80}
    assert rule["metric"] == "bearing_temperature"
    assert rule["severity"] == "critical"


async def test_a_platform_that_is_still_starting_is_waited_for(platform: FakePlatform) -> None:
    platform.starting = 2
    async with Platform(platform.url, EMAIL, PASSWORD, patience=20) as api:
        assert await api.devices() == {}


async def test_a_platform_that_never_comes_is_given_up_with_the_reason() -> None:
    with pytest.raises(PlatformRefused, match=r"POST /api/v1/auth/login: ConnectError"):
        async with Platform("http://127.0.0.1:1", EMAIL, PASSWORD, patience=0):
            pass


async def test_a_wrong_password_ends_at_once_and_is_not_repeated_in_the_error(
    platform: FakePlatform,
) -> None:
    with pytest.raises(PlatformRefused, match="HTTP 401") as refusal:
        async with Platform(platform.url, EMAIL, "wrong-canary", patience=60):
            pass
    assert "wrong-canary" not in str(refusal.value)
