"""Learning what is usual, and saying when it cannot be learnt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Conflict, Invalid
from services.ml.domain.robust_zscore import RobustZScore, learn, score_of


def test_it_learns_median_and_mad_and_is_not_moved_by_outliers() -> None:
    values = np.array([2.1, 2.6, 2.4, 2.5, 2.3, 2.1, 2.3, 2.6, 8.2, 8.3])
    learnt = learn(values, min_points=10)
    assert [learnt.median, learnt.mad, learnt.n] == pytest.approx([2.45, 0.15, 10])
    assert (learnt.z(values) > 3.5).tolist() == [False] * 8 + [True] * 2


def test_a_z_of_one_is_one_standard_deviation_of_normal_data() -> None:
    values = np.random.default_rng(7).normal(50, 4, 200_000)
    learnt = learn(values, min_points=30)
    assert learnt.z(np.array([54.0, 46.0])) == pytest.approx([1, 1], rel=0.02)
    assert learnt.normal_range(3.5) == pytest.approx((36, 64), abs=0.3)


def test_too_little_data_may_be_enough_another_day() -> None:
    with pytest.raises(Conflict, match="29 good points in that time, 30 are needed"):
        learn(np.arange(29.0), min_points=30)
    assert learn(np.arange(30.0), min_points=30).n == 30


def test_a_constant_series_and_one_that_is_mostly_constant_teach_nothing() -> None:
    with pytest.raises(Invalid, match="every value is 5"):
        learn(np.full(40, 5.0), min_points=30)
    with pytest.raises(Invalid, match="more than half of the values are 0"):
        learn(np.array([0.0] * 25 + list(range(1, 20))), min_points=30)
    with pytest.raises(Invalid, match="too far apart"):
        learn(np.array([-1.7e308, 1.7e308] * 20), min_points=30)


def test_a_value_beyond_measure_has_the_highest_score() -> None:
    z = RobustZScore(0, 1e-300, 30).z(np.array([1e300]))[0]
    assert (z, score_of(z, 3.5)) == (np.inf, 1.0)


@given(z=st.floats(0, 1e308), threshold=st.floats(0.5, 1000))
def test_a_score_lies_between_0_and_1_and_passes_a_half_with_the_threshold(
    z: float, threshold: float
) -> None:
    score = score_of(z, threshold)
    assert 0 <= score <= 1
    assert score <= 0.5 if z <= threshold else score >= 0.5
