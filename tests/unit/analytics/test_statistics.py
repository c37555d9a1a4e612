"""Statistics, against the standard library's."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics.domain.statistics import describe


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_they_are_those_of_the_textbook(values: list[float]) -> None:
    found = describe(np.array(values), [25, 50, 75])
    assert found.count == len(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert found.median == pytest.approx(statistics.median(values), abs=1e-6)
    assert found.variance == pytest.approx(statistics.variance(values), abs=1e-3)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-3)
    assert found.range == max(values) - min(values)
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    assert found.percentiles == pytest.approx(quartiles, abs=1e-6)


def test_one_value_has_no_spread_and_none_has_nothing() -> None:
    one = describe(np.array([4.0]), [95])
    assert (one.mean, one.std, one.variance, one.cv, one.percentiles) == (4, None, None, None, (4,))
    none = describe(np.array([]), [5, 95])
    assert (none.count, none.mean, none.min, none.percentiles) == (0, None, None, (None, None))


def test_values_about_zero_have_no_coefficient_of_variation() -> None:
    assert describe(np.array([-1.0, 1.0]), []).cv is None
    assert describe(np.array([-2.0, -4.0]), []).cv == pytest.approx(2**0.5 / 3)


def test_what_no_double_holds_is_left_unsaid() -> None:
    found = describe(np.array([1.7e308, -1.7e308, 1.7e308]), [50])
    assert (found.range, found.variance, found.std, found.cv) == (None, None, None, None)
    assert (found.min, found.max, found.median) == (-1.7e308, 1.7e308, 1.7e308)
