"""What a soak makes of its figures: a leak is found and named, and what comes and goes is none."""

import random
from collections.abc import Callable

import pytest

from tests.bench.meter import MEMORY_EVERY_S, Memory, growth_mb_per_h
from tests.bench.report import Figure
from tests.bench.soak import MOST_GROWTH_MB, NONE_OF, judge

SECONDS = 600
SAMPLES = int(SECONDS / MEMORY_EVERY_S)
LIMIT_MB_PER_H = MOST_GROWTH_MB * 3 * 3600 / SECONDS
FINE: dict[str, Figure] = {
    **dict.fromkeys(NONE_OF, 0),
    "seconds": SECONDS,
    "kept_up": True,
    "drain_s": 0.1,
    "memory_growth_mb_per_h": {"rules": 3.0, "postgres": -40.0},
}


def watched(*, samples: int = SAMPLES, **held_mb: Callable[[float], float]) -> list[Memory]:
    """Return what is seen of processes of which one holds so many MB after so many seconds."""
    times = [number * MEMORY_EVERY_S for number in range(samples)]
    return [Memory(1e6 + at, {name: of(at) for name, of in held_mb.items()}) for at in times]


def leaking(at: float) -> float:
    return 150 + at * 360 / 3600


def noisy(at: float) -> float:
    return 150 + random.Random(at).uniform(-2, 2)


def sawtooth(at: float) -> float:
    """Fill a log of 64 MB and begin another, every minute and a half, as a broker does."""
    return 200 + 64 * (at % 90) / 90


def filling(at: float) -> float:
    """Fill a cache in the first three minutes."""
    return min(300, 100 + at * 200 / 180)


def growth_of(held_mb: Callable[[float], float]) -> float:
    growth = growth_mb_per_h(watched(rules=held_mb))
    assert growth is not None
    return growth["rules"]


def test_a_leak_is_measured_for_what_it_is() -> None:
    assert growth_of(leaking) == pytest.approx(360, abs=1)


def test_a_leak_is_seen_through_the_noise() -> None:
    assert growth_of(lambda at: leaking(at) + noisy(at)) == pytest.approx(360, abs=20)
    assert growth_of(lambda at: leaking(at) + sawtooth(at)) > LIMIT_MB_PER_H


def spiking(at: float) -> float:
    """Take 50 MB for some seconds, now and then, late in the run."""
    return 200 if at > 420 and at % 40 < 6 else 150


@pytest.mark.parametrize("held_mb", [noisy, sawtooth, filling, spiking])
def test_what_comes_and_goes_is_no_leak(held_mb: Callable[[float], float]) -> None:
    assert abs(growth_of(held_mb)) < LIMIT_MB_PER_H / 3


def test_a_minute_says_nothing() -> None:
    assert growth_mb_per_h(watched(samples=30, rules=leaking)) is None


def test_nothing_is_said_of_what_is_fine() -> None:
    assert judge(FINE) == []


def test_the_process_that_grows_is_named() -> None:
    growth = growth_mb_per_h(watched(rules=leaking, ingest=noisy))
    assert judge({**FINE, "memory_growth_mb_per_h": growth}) == [
        "rules grows by 360.0 MB an hour, of 180 allowed"
    ]


def test_a_longer_run_finds_a_smaller_leak() -> None:
    growth: dict[str, Figure] = {"rules": 40.0, "rabbitmq": 40.0}
    figures = {**FINE, "memory_growth_mb_per_h": growth}
    assert judge(figures) == []
    assert judge({**figures, "seconds": 3600}) == ["rules grows by 40.0 MB an hour, of 30 allowed"]


@pytest.mark.parametrize("name", NONE_OF)
def test_each_promise_that_is_broken_or_was_not_measured_is_a_failure(name: str) -> None:
    assert judge({**FINE, name: 3}) == [f"3 {NONE_OF[name]}"]
    assert judge({**FINE, name: None}) == [f"not measured, whether {NONE_OF[name]}"]


def test_falling_behind_is_a_failure() -> None:
    assert judge({**FINE, "kept_up": False, "drain_s": 12.5}) == [
        "the platform fell behind: it had 12.5 s left to store"
    ]


def test_one_cannot_judge_too_short_a_run() -> None:
    [failure] = judge({**FINE, "memory_growth_mb_per_h": None})
    assert "too short" in failure


def test_a_figure_that_is_missing_is_no_pass() -> None:
    with pytest.raises(KeyError):
        judge({name: figure for name, figure in FINE.items() if name != "lost"})
