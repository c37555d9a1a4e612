"""How much a device may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.quota import Quota, Rate, messages


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 60)), max_size=100),
    st.integers(1, 50),
    st.integers(1, 100),
)
def test_who_waits_as_told_sends_no_more_than_the_average_and_one_burst_and_one_batch(
    asked: list[tuple[float, int]], per_second: int, burst: int
) -> None:
    quota, now, taken = Quota(Rate(per_second, burst), 0.0), 0.0, 0
    for pause_s, count in asked:
        now += pause_s
        if quota.wait_s(now) == 0:
            quota.spend(count, now)
            taken += count
    assert taken <= per_second * now + burst + 60


def test_a_batch_larger_than_the_burst_is_taken_and_waited_for() -> None:
    quota = Quota(Rate(per_second=10, burst=20), 0.0)
    quota.spend(120, 0.0)
    assert quota.wait_s(0.0) == 10.0
    assert quota.wait_s(9.5) == pytest.approx(0.5)
    assert quota.wait_s(10.0) == 0.0
    assert quota.full_s(10.0) == pytest.approx(2.0)


def test_a_long_silence_saves_up_no_more_than_a_burst() -> None:
    quota = Quota(Rate(per_second=10, burst=20), 0.0)
    quota.spend(20, 0.0)
    quota.refill(86_400.0)
    assert quota.remaining == 20


def test_a_time_that_goes_back_gives_nothing_twice_and_takes_nothing() -> None:
    quota = Quota(Rate(per_second=10, burst=20), 100.0)
    quota.spend(20, 100.0)
    quota.refill(50.0)
    quota.refill(100.0)
    assert quota.remaining == 0
    quota.refill(101.0)
    assert quota.remaining == 10


@pytest.mark.parametrize(("points", "count"), [(0, 1), (1, 1), (10, 1), (11, 2), (10_000, 1_000)])
def test_a_batch_counts_as_a_message_for_each_ten_points(points: int, count: int) -> None:
    assert messages(points) == count
