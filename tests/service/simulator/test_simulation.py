"""The whole simulator against a platform: enrolled, talking, told to stop."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clients.simulator.devices.device import Reading
from clients.simulator.faults import parse_fault
from clients.simulator.plant import DEVICES
from clients.simulator.protocols import Doors
from clients.simulator.simulation import HTTP_TYPES, Progress, Settings, run
from clients.simulator.site import device_types
from deploy.cli.main import app
from deploy.local.mosquitto import Mosquitto
from tests.service.simulator.conftest import EMAIL, PASSWORD, FakePlatform


def settings(platform: FakePlatform, mosquitto: Mosquitto, path: Path, *faults: str) -> Settings:
    return Settings(
        doors=Doors(platform.url, {"mqtt": ("127.0.0.1", mosquitto.port)}),
        email=EMAIL,
        password=PASSWORD,
        state=path / "state.json",
        rate=20,
        speed=20,
        faults=tuple(parse_fault(fault) for fault in faults),
    )


async def test_fourteen_devices_talk_and_everything_is_acknowledged_at_the_end(
    platform: FakePlatform, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stop, seen = asyncio.Event(), list[Progress]()
    ledger: dict[str, list[Reading]] = {}

    def acknowledged(device: str, reading: Reading) -> None:
        ledger.setdefault(device, []).append(reading)
        if sum(map(len, ledger.values())) >= 500:
            stop.set()

    async with asyncio.timeout(30):
        stats = await run(
            settings(platform, mosquitto, tmp_path, "bearing_wear:pump-2@5s"),
            stop,
            on_progress=seen.append,
            on_acknowledged=acknowledged,
        )

    assert stats.acknowledged == stats.offered >= 500
    assert (stats.rejected, stats.dropped) == (0, 0)
    names = {str(device["id"]): str(device["name"]) for device in platform.devices.values()}
    assert {names[device] for device in ledger} == set(DEVICES)
    assert {DEVICES[names[device]] for device, _ in platform.telemetry} == HTTP_TYPES
    assert seen[-1].connected == 14
    assert seen[-1].faults == ("bearing_wear:pump-2",)
    pump = next(device for device, name in names.items() if name == "pump-2")
    temperatures = [float(reading.values["bearing_temperature"]) for reading in ledger[pump]]
    assert max(temperatures) > temperatures[0] + 20
    assert len(platform.rules) == 1


async def test_a_plant_of_any_size_speaks_the_protocols_in_the_shares_that_were_asked_for(
    platform: FakePlatform, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stop, seen = asyncio.Event(), list[Progress]()

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.connected == 40:
            stop.set()

    chosen = replace(
        settings(platform, mosquitto, tmp_path, "stuck:station-3/pump-1@0s"),
        devices=40,
        protocols={"mqtt": 3, "http": 1},
        rate=5,
    )
    async with asyncio.timeout(30):
        stats = await run(chosen, stop, on_progress=watch)

    assert {str(device["name"]) for device in platform.devices.values()} == set(device_types(40))
    assert {name: group.devices for name, group in seen[-1].groups.items()} == {
        "mqtt": 30,
        "http": 10,
    }
    assert seen[-1].faults == ("stuck:station-3/pump-1",)
    assert stats.acknowledged == stats.offered > 0
    assert len({device for device, _ in platform.telemetry}) == 10


async def test_a_revoked_device_stays_outside_and_the_others_go_on(
    platform: FakePlatform, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stop, seen = asyncio.Event(), list[Progress]()

    def watch(progress: Progress) -> None:
        seen.append(progress)
        for device, kept in platform.devices.items():
            if kept["name"] == "power-meter":
                platform.tokens.pop(device, None)
        if progress.turned_away:
            stop.set()

    # The revoked device can never be rid of its readings: waiting for it is in vain.
    chosen = replace(settings(platform, mosquitto, tmp_path), farewell=0.2)
    async with asyncio.timeout(30):
        stats = await run(chosen, stop, on_progress=watch)

    assert seen[-1].turned_away == 1
    assert seen[-1].connected == 13
    assert platform.rotations == []
    assert 0 < stats.acknowledged < stats.offered


async def test_a_simulator_told_to_stop_while_it_waits_for_the_platform_stops(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(
        run(settings(FakePlatform(url="http://127.0.0.1:1"), mosquitto, tmp_path), stop)
    )
    done, _ = await asyncio.wait((running,), timeout=0.3)
    assert not done
    stop.set()
    async with asyncio.timeout(30):
        assert (await running).offered == 0


async def test_the_command_talks_until_it_is_terminated(
    platform: FakePlatform, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    words = [
        *("-m", "deploy.cli", "simulate", "--api", platform.url),
        *("--mqtt", f"127.0.0.1:{mosquitto.port}", "--email", EMAIL),
        *("--password-env", "PLANT_PASSWORD", "--state", str(tmp_path / "state.json")),
        *("--rate", "10", "--fault", "stuck:pump-1.flow@0s", "--speed", "2"),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        env=os.environ | {"PLANT_PASSWORD": PASSWORD},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30):
            while len(platform.telemetry) < 20:
                assert process.returncode is None
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert "stuck:pump-1.flow" in output.decode()
    assert "readings acknowledged" in output.decode()
    assert PASSWORD not in output.decode()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--fault", "rust:pump-1"], "no fault is called 'rust'"),
        (["--fault", "drift:pump-9"], "no device is called 'pump-9'"),
        (["--mqtt", "nowhere"], "is not HOST:PORT"),
        (["--api", "nowhere"], "'nowhere' is no URL of a platform"),
        (["--protocol", "smoke:1"], "smoke is not spoken here"),
        (["--protocol", "mqtt:many"], "'mqtt:many' is not NAME or NAME:SHARE"),
        (["--password-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(
    words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATOR_PASSWORD", PASSWORD)
    monkeypatch.setenv("COLUMNS", "200")
    state = str(tmp_path / "state.json")
    done = CliRunner().invoke(app, ["simulate", "--email", EMAIL, "--state", state, *words])
    assert done.exit_code != 0
    assert reason in done.output
