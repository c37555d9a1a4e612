"""What can be said of a heap of values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Statistics:
    """A summary of values; what cannot be said of them (too few, too large) is None.

    `std` and `variance` are those of a sample (n - 1). Percentiles are interpolated linearly
    (Hyndman and Fan 1996, type 7). `cv` is the standard deviation divided by |mean|.
    """

    count: int
    mean: float | None = None
    median: float | None = None
    std: float | None = None
    variance: float | None = None
    min: float | None = None
    max: float | None = None
    range: float | None = None
    cv: float | None = None
    percentiles: tuple[float | None, ...] = ()


def describe(values: npt.NDArray[np.float64], percentiles: Sequence[float]) -> Statistics:
    """Return the summary of the values, with these percentiles (0 to 100) in this order."""
    if not len(values):
        return Statistics(0, percentiles=(None,) * len(percentiles))
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.mean(values))
        variance = float(np.var(values, ddof=1)) if len(values) > 1 else math.nan
        low, high = float(np.min(values)), float(np.max(values))
        median, *at = (float(v) for v in np.percentile(values, [50.0, *percentiles]))
    std = math.sqrt(variance) if variance >= 0 else math.nan
    return Statistics(
        count=len(values),
        mean=finite(mean),
        median=finite(median),
        std=finite(std),
        variance=finite(variance),
        min=low,
        max=high,
        range=finite(high - low),
        cv=finite(std / abs(mean)) if mean else None,
        percentiles=tuple(finite(value) for value in at),
    )


def finite(value: float) -> float | None:
    """Return the value, or None if it is not a number that JSON can hold."""
    return value if math.isfinite(value) else None
