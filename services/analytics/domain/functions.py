"""What can be made of a series, point by point. Columns in, columns out.

Times are µs since 1970 UTC, ascending, each once.
"""

from datetime import timedelta

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_MICROSECOND = timedelta(microseconds=1)


def moving_average(ts: Times, values: Values, window: int | timedelta) -> tuple[Values, Counts]:
    """Return for each point the mean of the window that ends with it, and how many points that had.

    A window is the last `window` points, or those of (t - window, t]. At the beginning it holds
    what there is.
    """
    ends = np.arange(1, len(ts) + 1)
    if isinstance(window, int):
        starts = np.maximum(ends - window, 0)
    else:
        starts = np.searchsorted(ts, ts - window // _MICROSECOND, side="right")
    counts = ends - starts
    if not len(ts):
        return np.empty(0), counts
    # Each window is added up anew: with running sums, one huge value would blur all later ones.
    edges = np.column_stack((starts, ends)).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.add.reduceat(np.append(values, 0.0), edges)[::2]
        return sums / counts, counts


def rate_of_change(ts: Times, values: Values, per: timedelta) -> Values:
    """Return by how much the value changed per `per`, from each point to the next: one fewer."""
    with np.errstate(over="ignore", invalid="ignore"):
        change: Values = np.diff(values) / np.diff(ts) * (per // _MICROSECOND)
    return change
