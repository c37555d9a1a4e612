"""The station as a whole: what its devices say is believable, coupled and repeatable."""

from datetime import UTC, datetime, timedelta
from math import isfinite

import pytest

from clients.simulator.faults import parse_fault
from clients.simulator.metrics import METRICS, Values
from clients.simulator.plant import DEVICES, Plant

NOON = datetime(2025, 6, 3, 12, tzinfo=UTC)
WINTER_NIGHT = datetime(2025, 1, 15, 3, tzinfo=UTC)
SUMMER_EVENING = datetime(2025, 7, 15, 19, tzinfo=UTC)


def run(plant: Plant, seconds: int, start: datetime = NOON) -> list[dict[str, Values]]:
    return [plant.step(1, start + timedelta(seconds=turn + 1)) for turn in range(seconds)]


def number(readings: dict[str, Values], device: str, metric: str) -> float:
    value = readings[device][metric]
    assert isinstance(value, float)
    return value


def test_every_device_measures_what_its_type_declares_and_a_bool_and_a_word() -> None:
    readings = run(Plant(1, NOON), 1)[0]
    assert set(readings) == set(DEVICES)
    for device, values in readings.items():
        declared = METRICS[DEVICES[device]]
        assert {name for name, value in values.items() if isinstance(value, float)} == set(declared)
        assert any(isinstance(value, bool) for value in values.values())
        assert any(isinstance(value, str) for value in values.values())


@pytest.fixture(scope="module")
def week() -> tuple[Plant, float, list[dict[str, Values]]]:
    plant = Plant(3, NOON)
    before = plant.raw.volume + plant.clear.volume - plant.water_in + plant.water_out
    readings = [plant.step(60, NOON + timedelta(minutes=turn + 1)) for turn in range(7 * 24 * 60)]
    return plant, before, readings


Week = tuple[Plant, float, list[dict[str, Values]]]


def test_a_week_in_minutes_never_reads_nonsense(week: Week) -> None:
    for readings in week[2]:
        for values in readings.values():
            for value in values.values():
                if isinstance(value, float):
                    assert isfinite(value)


def test_no_water_is_made_or_lost_in_a_week(week: Week) -> None:
    plant, before, _ = week
    after = plant.raw.volume + plant.clear.volume - plant.water_in + plant.water_out
    spilt = plant.raw.overflowed + plant.clear.overflowed
    assert after + spilt == pytest.approx(before, abs=1e-6)
    assert plant.water_out > 7 * 24 * 200


@pytest.mark.parametrize(
    ("device", "metric", "low", "high"),
    [
        ("pump-1", "bearing_temperature", 30, 70),
        ("pump-1", "vibration", 0.3, 2.8),
        ("pump-1", "efficiency", 60, 82),
        ("pump-1", "discharge_pressure", 2, 4),
        ("motor-1", "current", 15, 55),
        ("motor-1", "winding_temperature", 18, 90),
        ("raw-water-tank", "level", 50, 97),
        ("clear-water-tank", "level", 40, 95),
        ("compressor-1", "pressure", 6.4, 7.6),
        ("compressor-1", "oil_temperature", 40, 85),
        ("outlet-flow-meter", "flow", 120, 560),
        ("power-meter", "power", 15, 90),
        ("power-meter", "frequency", 49.8, 50.2),
        ("weather-station", "temperature", 0, 35),
        ("weather-station", "wind_speed", 0, 20),
        ("dosing-unit", "chlorine", 0.4, 0.8),
        ("dosing-unit", "ph", 6.9, 7.9),
    ],
)
def test_a_healthy_week_stays_in_believable_ranges(
    week: Week, device: str, metric: str, low: float, high: float
) -> None:
    values = [number(readings, device, metric) for readings in week[2]]
    assert low <= min(values)
    assert max(values) <= high


def test_the_third_pump_helps_at_the_peaks_and_rests_between_them(week: Week) -> None:
    running = [readings["pump-3"]["running"] for readings in week[2]]
    assert 0 < sum(map(bool, running)) < len(running) / 2


def test_the_power_meter_sums_what_the_machines_take() -> None:
    readings = run(Plant(1, NOON), 30)[-1]
    motors = sum(number(readings, f"motor-{n}", "power") for n in (1, 2, 3))
    rest = number(readings, "compressor-1", "power") + 1.8
    assert number(readings, "power-meter", "power") == pytest.approx(motors + rest, abs=0.5)


def test_what_the_pumps_lift_is_what_the_clear_tank_receives() -> None:
    readings = run(Plant(1, NOON), 30)[-1]
    pumped = sum(number(readings, f"pump-{n}", "flow") for n in (1, 2, 3))
    assert number(readings, "clear-water-tank", "inflow") == pytest.approx(pumped, abs=6)


def test_the_same_seed_tells_the_same_story() -> None:
    faults = [parse_fault("spike:pump-1.flow@5s"), parse_fault("bearing_wear:pump-2@10s")]
    first = run(Plant(7, NOON, faults), 120)
    assert run(Plant(7, NOON, faults), 120) == first
    assert run(Plant(8, NOON, faults), 120) != first


@pytest.mark.parametrize("start", [NOON, WINTER_NIGHT, SUMMER_EVENING])
def test_a_worn_bearing_passes_95_degrees_within_90_seconds_and_recovers(start: datetime) -> None:
    plant = Plant(1, start, [parse_fault("bearing_wear:pump-2@30s+3m")])
    story = run(plant, 420, start)
    temperature = [number(readings, "pump-2", "bearing_temperature") for readings in story]
    vibration = [number(readings, "pump-2", "vibration") for readings in story]

    assert max(temperature[:29]) < 65
    assert temperature[30 + 90] > 95
    assert max(temperature) < 140
    assert vibration[30 + 60] > 4.5
    assert max(temperature[300:]) < 80
    assert vibration[-1] < 2.8
    # The neighbour does not suffer.
    assert max(number(readings, "pump-1", "bearing_temperature") for readings in story) < 65
