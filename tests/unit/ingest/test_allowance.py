"""How many reports a device may make."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.allowance import Allowance

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@given(st.lists(st.integers(0, 20_000), max_size=300), st.integers(1, 40))
def test_in_no_minute_more_than_twice_as_many_as_a_minute_has(
    pauses_ms: list[int], a_minute: int
) -> None:
    allowance, at, taken = Allowance(a_minute, NOON), NOON, []
    for pause in pauses_ms:
        at += timedelta(milliseconds=pause)
        left = allowance.later(at, a_minute).spent()
        if left is not None:
            allowance = left
            taken.append(at)
    for begin in taken:
        within = [t for t in taken if begin <= t < begin + timedelta(minutes=1)]
        assert len(within) <= 2 * a_minute


def test_who_reports_as_often_as_allowed_is_never_refused() -> None:
    allowance = Allowance(30, NOON)
    for n in range(1_000):
        left = allowance.later(NOON + n * timedelta(seconds=2), 30).spent()
        assert left is not None
        allowance = left


def test_a_long_silence_saves_up_no_more_than_a_minute_has() -> None:
    assert Allowance(0, NOON).later(NOON + timedelta(hours=1), 30) == Allowance(
        30, NOON + timedelta(hours=1)
    )


def test_a_time_that_goes_back_gives_nothing_twice_and_takes_nothing() -> None:
    earlier = NOON - timedelta(hours=1)
    assert Allowance(2, NOON).later(earlier, 30) == Allowance(2, NOON)
