"""The robust z-score: how many typical deviations a value lies from the median.

After Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): the median and the median
absolute deviation (MAD) stand where a z-score has mean and standard deviation, so that outliers in
the training data hardly move them. 1.4826 · MAD estimates the standard deviation of normal data;
they suggest 3.5 as the threshold.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from libs.common.errors import Conflict, Invalid

SCALE = 1.4826
USUAL_THRESHOLD = 3.5

Values = npt.NDArray[np.float64]


class TooFewPoints(Conflict):
    """There is not enough data to learn from, yet."""


@dataclass(frozen=True, slots=True)
class RobustZScore:
    """What was learnt from `n` points, in the metric's own unit; `mad` is not scaled and not zero."""

    median: float
    mad: float
    n: int

    def z(self, values: Values) -> Values:
        """Return how many typical deviations each value lies from the median, either way."""
        with np.errstate(over="ignore"):
            scores: Values = np.abs(values - self.median) / (SCALE * self.mad)
        return scores

    def normal_range(self, threshold: float) -> tuple[float, float]:
        """Return the lowest and the highest value whose z does not pass the threshold."""
        reach = threshold * SCALE * self.mad
        return self.median - reach, self.median + reach


def learn(values: Values, *, min_points: int) -> RobustZScore:
    """Learn from values, in any order.

    Raises TooFewPoints, and Invalid if the values show no deviation to measure by.
    """
    if len(values) < min_points:
        raise TooFewPoints(f"{len(values)} good points in that time, {min_points} are needed")
    median = float(np.median(values))
    with np.errstate(over="ignore"):
        mad = float(np.median(np.abs(values - median)))
        scaled = SCALE * mad
    if not np.isfinite(scaled):
        raise Invalid("the values lie too far apart to measure by")
    if scaled < np.finfo(np.float64).tiny:
        low, high = float(values.min()), float(values.max())
        if low == high:
            raise Invalid(f"the metric is constant: every value is {low:g}")
        raise Invalid(
            f"more than half of the values are {median:g}: the typical deviation is zero,"
            " so every other value would be an anomaly; a rule may serve you better"
        )
    return RobustZScore(median, mad, len(values))


def score_of(z: float, threshold: float) -> float:
    """Return z as a score from 0 to 1: 0.5 at the threshold, 0.9 at nine times that."""
    return z / (z + threshold) if np.isfinite(z) else 1.0
