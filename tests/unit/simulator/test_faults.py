"""Faults begin, distort one sensor and end; the sensors beside it keep telling the truth."""

from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from clients.simulator.faults import Fault, FaultKind, parse_fault
from clients.simulator.metrics import Values
from clients.simulator.plant import Plant

NOON = datetime(2025, 6, 3, 12, tzinfo=UTC)


def run(*faults: str, seconds: int = 60) -> list[dict[str, Values]]:
    plant = Plant(1, NOON, [parse_fault(fault) for fault in faults])
    return [plant.step(1, NOON + timedelta(seconds=turn + 1)) for turn in range(seconds)]


def levels(story: list[dict[str, Values]]) -> list[float]:
    return [float(readings["clear-water-tank"]["level"]) for readings in story]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("bearing_wear:pump-2@30s", Fault(FaultKind.BEARING_WEAR, "pump-2", None, 30, 180)),
        ("drift:pump-1.flow@5m+1h", Fault(FaultKind.DRIFT, "pump-1", "flow", 300, 3600)),
        ("stuck:power-meter@1.5+forever", Fault(FaultKind.STUCK, "power-meter", None, 1.5, inf)),
        ("dropout:pump-1", Fault(FaultKind.DROPOUT, "pump-1", None, 0, 180)),
    ],
)
def test_a_fault_is_read_as_it_is_typed(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("bearing_wear", "is not KIND:DEVICE"),
        ("rust:pump-2", "no fault is called 'rust'; there are drift"),
        ("bearing_wear:pump-2.flow", "strikes a whole pump"),
        ("drift:pump-1@soon", "is not KIND:DEVICE"),
        ("drift:pump-1@1.2.3s", "is not KIND:DEVICE"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_fault(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("drift:pump-9", "no device is called 'pump-9'; there are pump-1"),
        ("drift:pump-1.taste", "does not measure 'taste'; it measures bearing_temperature"),
        ("bearing_wear:power-meter", "has no bearing"),
    ],
)
def test_a_fault_that_could_never_be_seen_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Plant(1, NOON, [parse_fault(text)])


def test_a_stuck_sensor_repeats_itself_until_it_is_freed() -> None:
    story = levels(run("stuck:clear-water-tank@10+20"))
    assert len(set(story[9:29])) == 1
    assert len(set(story[29:])) > 1


def test_a_step_is_half_a_span_and_ends() -> None:
    truth, story = levels(run()), levels(run("step:clear-water-tank@10+20"))
    offsets = [round(read - true, 1) for read, true in zip(story, truth, strict=True)]
    assert offsets == [0] * 9 + [30] * 20 + [0] * 31


def test_a_drift_grows_to_a_span_and_ends() -> None:
    truth, story = levels(run()), levels(run("drift:clear-water-tank@10+20"))
    offsets = [read - true for read, true in zip(story, truth, strict=True)]
    assert offsets[9:29] == sorted(offsets[9:29])
    assert 55 < offsets[28] < 60
    assert offsets[29:] == [0] * 31


def test_spikes_are_rare_and_large() -> None:
    truth = levels(run(seconds=300))
    story = levels(run("spike:clear-water-tank+5m", seconds=300))
    offsets = [abs(read - true) for read, true in zip(story, truth, strict=True)]
    hits = [offset for offset in offsets if offset > 0]
    assert 30 < len(hits) < 100
    assert min(hits) > 100


def test_a_dropout_silences_the_device_or_one_metric() -> None:
    whole = run("dropout:pump-1@10+20")
    assert ["pump-1" in readings for readings in whole] == [True] * 9 + [False] * 20 + [True] * 31
    part = run("dropout:pump-1.flow@10+20")
    assert ["flow" in r["pump-1"] for r in part] == [True] * 9 + [False] * 20 + [True] * 31


def test_a_faulty_sensor_leaves_all_others_as_they_were() -> None:
    truth = run(seconds=100)
    story = run("spike:pump-1.flow", "drift:pump-2.power", "dropout:power-meter", seconds=100)
    for faulty, healthy in zip(story, truth, strict=True):
        faulty["pump-1"]["flow"] = healthy["pump-1"]["flow"]
        faulty["pump-2"]["power"] = healthy["pump-2"]["power"]
        faulty["power-meter"] = healthy["power-meter"]
        assert faulty == healthy


def test_the_plant_says_what_is_broken_now() -> None:
    plant = Plant(1, NOON, [parse_fault("bearing_wear:pump-2@2+2")])
    broken = []
    for turn in range(5):
        plant.step(1, NOON + timedelta(seconds=turn))
        broken.append([str(fault) for fault in plant.active_faults()])
    assert broken == [[], ["bearing_wear:pump-2"], ["bearing_wear:pump-2"], [], []]
