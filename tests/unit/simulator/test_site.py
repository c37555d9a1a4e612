"""Plants of any size: names, shares of protocols, faults by chance."""

from collections import Counter
from datetime import UTC, datetime

import pytest

from clients.simulator.commands import CommandFailed
from clients.simulator.faults import parse_fault
from clients.simulator.plant import DEVICES, Plant
from clients.simulator.site import Site, device_types, name_of, shared_out

START = datetime(2026, 6, 1, tzinfo=UTC)


def test_the_first_station_keeps_its_names_and_the_last_may_be_a_part_of_one() -> None:
    types = device_types(30)
    assert len(types) == 30
    assert list(types)[:14] == list(DEVICES)
    assert list(types)[14] == "station-2/pump-1"
    assert list(types)[-1] == "station-3/pump-2"


def test_stations_differ_and_the_same_seed_gives_the_same_site() -> None:
    site, twin = (Site(28, 7, START) for _ in range(2))
    first, second = site.step(0, 1.0), site.step(1, 1.0)
    assert first["pump-1"] != second["station-2/pump-1"]
    assert (twin.step(0, 1.0), twin.step(1, 1.0)) == (first, second)


def test_a_part_of_a_station_says_nothing_of_the_devices_that_are_not_there() -> None:
    assert set(Site(3, 1, START).step(0, 1.0)) == {"pump-1", "pump-2", "pump-3"}


def test_a_fault_strikes_the_station_it_names() -> None:
    site = Site(28, 1, START, [parse_fault("dropout:station-2/pump-1@0s")])
    assert "station-2/pump-1" not in site.step(1, 1.0)
    assert "pump-1" in site.step(0, 1.0)
    assert site.active_faults() == ["dropout:station-2/pump-1"]


def test_a_fault_of_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no device is called 'station-9/pump-1'"):
        Site(28, 1, START, [parse_fault("drift:station-9/pump-1")])


def test_random_faults_come_about_as_often_as_asked_for_and_repeat_with_the_seed() -> None:
    def count(seed: int) -> Counter[str]:
        site = Site(14, seed, START, random_faults=20)
        seen: Counter[str] = Counter()
        for _ in range(4 * 60):
            site.step(0, 60.0)
            seen.update(site.active_faults())
        return seen

    seen = count(3)
    assert seen == count(3) != count(4)
    assert {fault.partition(":")[0] for fault in seen} == {
        "drift", "spike", "stuck", "step", "dropout", "bearing_wear",
    }  # fmt: skip


def seen_in(site: Site, minutes: int) -> set[str]:
    seen: set[str] = set()
    for _ in range(minutes):
        site.step(0, 60.0)
        seen.update(site.active_faults())
    return seen


def test_random_faults_strike_no_device_that_is_not_there() -> None:
    seen = seen_in(Site(1, 1, START, random_faults=20), 4 * 60)
    assert seen
    assert all(":pump-1" in fault for fault in seen)


def test_random_faults_do_not_end() -> None:
    site = Site(14, 1, START, random_faults=20)
    site.step(0, 72 * 3_600.0)
    assert seen_in(site, 60)


@pytest.mark.parametrize("devices", [1, 7, 10, 1000])
def test_protocols_are_shared_out_in_proportion(devices: int) -> None:
    shares = {"mqtt": 7.0, "http": 2.0, "coap": 1.0}
    chosen = Counter(shared_out([str(n) for n in range(devices)], shares).values())
    for protocol, share in shares.items():
        assert abs(chosen[protocol] - devices * share / 10) <= 1


@pytest.mark.parametrize("shares", [{"mqtt": 0.0}, {"mqtt": 2.0, "http": -1.0}])
def test_shares_that_make_no_whole_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        shared_out(["a"], shares)


def test_an_operator_stops_a_pump_and_the_controller_takes_over_again() -> None:
    plant = Plant(1, START)

    def run(seconds: int) -> float:
        for _ in range(seconds):
            plant.step(1.0, START)
        return plant.pumps[0].motor.speed

    assert plant.command("pump-1", "stop", {}) == {"mode": "manual"}
    assert run(120) == 0
    assert plant.step(1.0, START)["pump-1"]["mode"] == "manual"
    assert plant.command("pump-1", "auto", {}) == {"mode": "auto"}
    assert run(120) > 0.5


@pytest.mark.parametrize(
    ("device", "command", "why"),
    [
        ("pump-1", "fly", "a pump does not know the command 'fly'"),
        ("weather-station", "start", "a weather-station does not know"),
        ("raw-water-tank", "set_inlet", "set_inlet takes"),
    ],
)
def test_a_command_that_makes_no_sense_fails_with_the_reason(
    device: str, command: str, why: str
) -> None:
    with pytest.raises(CommandFailed, match=why):
        Plant(1, START).command(device, command, {})


def test_names_of_stations() -> None:
    assert (name_of(0, "pump-1"), name_of(11, "pump-1")) == ("pump-1", "station-12/pump-1")
