"""What the fleet's bench makes of what its processes say."""

import pytest

from tests.bench import fleet
from tests.bench.fleet import Driven, Options, Watch
from tests.fleet.fleet import Ledger

SECONDS, BURST = 300.0, 60.0


class Clock:
    """The monotonic clock, as far as a test turns it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fleet, "time", clock)
    return clock


def watch(*, burst: float = 0.0) -> tuple[Watch, Driven]:
    driven = Driven(Ledger([]))
    options = Options(devices=10, workers=2, seconds=SECONDS, burst=burst, shares={})
    return Watch(options, driven, {}), driven


def said(
    *, entered: int = 5, waiting: int = 0, points: int = 0, settled: int = 0
) -> dict[str, float]:
    return {
        "entered": entered,
        "connected": entered,
        "waiting": waiting,
        "points": points,
        "reconnects": 0,
        "cpu_s": 0.0,
        "settled": settled,
    }


def test_time_counts_from_when_the_devices_of_all_processes_are_in(clock: Clock) -> None:
    watching, driven = watch()
    watching.note(0, said(entered=5, points=30))
    assert not watching.all_in.is_set()
    clock.now += 40
    watching.note(1, said(entered=4, points=12))
    assert not watching.all_in.is_set()
    clock.now += 2
    watching.note(1, said(entered=5, points=15))
    assert watching.all_in.is_set()
    assert driven.connected_s == 42
    assert driven.all_in is not None
    assert driven.all_in.points == 45


def test_it_has_ended_when_all_processes_have_everything_acknowledged(clock: Clock) -> None:
    watching, driven = watch()
    for worker in (0, 1):
        watching.note(worker, said())
    watching.note(0, said(points=300, settled=1))
    assert driven.settled is None
    watching.note(1, said(points=200, settled=1))
    assert driven.settled is not None
    assert driven.settled.points == 500


def test_a_burst_has_drained_when_no_more_waits_than_before_it(clock: Clock) -> None:
    watching, driven = watch(burst=10.0)
    for worker in (0, 1):
        watching.note(worker, said(waiting=3))
    calm = (SECONDS - BURST) / 2
    over = calm + BURST
    for at, waiting in ((10, 4), (calm + 30, 900), (over + 5, 50), (over + 9, 1), (over + 20, 0)):
        clock.now = 1000.0 + at
        watching.note(0, said(waiting=waiting))
    assert driven.drained_s == 9
    assert driven.most_waiting == 903
