"""Functions of a series, against the plain way to compute them."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.domain.functions import moving_average, rate_of_change

SECOND = timedelta(seconds=1)
GAPS = st.lists(st.integers(1, 5_000_000), min_size=1, max_size=60)


def columns(*points: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    ts = np.array([round(s * 1_000_000) for s, _ in points], dtype=np.int64)
    return ts, np.array([v for _, v in points], dtype=np.float64)


def test_an_average_over_points_begins_with_what_there_is() -> None:
    means, counts = moving_average(*columns((0, 1), (1, 2), (2, 3), (3, 10)), 3)
    assert means.tolist() == [1, 1.5, 2, 5]
    assert counts.tolist() == [1, 2, 3, 3]


def test_an_average_over_time_leaves_out_the_point_exactly_a_window_ago() -> None:
    means, counts = moving_average(*columns((0, 1), (1, 2), (2, 3), (10, 7)), 2 * SECOND)
    assert means.tolist() == [1, 1.5, 2.5, 7]
    assert counts.tolist() == [1, 2, 2, 1]


def test_one_huge_value_blurs_only_the_windows_it_is_in() -> None:
    means, _ = moving_average(*columns((0, 1e20), (1, 0.1), (2, 0.2), (3, 0.3)), 2)
    assert means[2:].tolist() == pytest.approx([0.15, 0.25])


@given(gaps=GAPS, window=st.integers(1, 70), window_us=st.integers(1, 60_000_000))
def test_an_average_is_what_a_loop_would_say(gaps: list[int], window: int, window_us: int) -> None:
    ts = np.cumsum(np.array(gaps, dtype=np.int64))
    values = np.sin(ts.astype(np.float64))
    means, counts = moving_average(ts, values, window)
    for i in range(len(ts)):
        part = values[max(0, i + 1 - window) : i + 1]
        assert (means[i], counts[i]) == (pytest.approx(part.mean()), len(part))
    means, counts = moving_average(ts, values, timedelta(microseconds=window_us))
    for i in range(len(ts)):
        part = values[: i + 1][ts[: i + 1] > ts[i] - window_us]
        assert (means[i], counts[i]) == (pytest.approx(part.mean()), len(part))


def test_nothing_has_no_average_and_no_rate() -> None:
    means, counts = moving_average(*columns(), 3)
    assert len(means) == len(counts) == len(rate_of_change(*columns(), SECOND)) == 0
    assert len(rate_of_change(*columns((0, 1)), SECOND)) == 0


def test_a_rate_is_by_the_time_that_passed() -> None:
    ts, values = columns((0, 10), (2, 16), (3, 15))
    assert rate_of_change(ts, values, SECOND).tolist() == [3, -1]
    assert rate_of_change(ts, values, timedelta(hours=1)).tolist() == [10_800, -3_600]
