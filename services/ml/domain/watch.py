"""Which points any model waits for: from a column of series numbers to the models, in a few steps.

Nearly all points concern no model; they are sorted out a column at a time, by a table with a flag
for each series number.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import numpy as np
import numpy.typing as npt

from services.ml.domain.excursion import State
from services.ml.domain.model import Model

BAD = 2
"""The worst quality of a point; see libs.common.historian.point."""


@dataclass(slots=True, eq=False)
class Watched:
    """A model at work, and how far it has got: true as long as the worker owns the shard.

    A model that is trained anew becomes another Watched: what is still being worked out by the old
    one cannot reach the new.
    """

    model: Model
    state: State | None = None
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with points of its series, in order; times in µs since 1970 UTC.

    A point counts `at` its own time `ts`, or when it was received if that was before: a clock that
    runs ahead moves nothing into the future.
    """

    watched: Watched
    ts: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    at: npt.NDArray[np.int64]


class Watch:
    """The models at work, by the number of the series they watch.

    A point that comes more than `lateness` after its own time is late.
    """

    def __init__(self, lateness: timedelta) -> None:
        self._lateness_us = lateness // timedelta(microseconds=1)
        self._models: dict[UUID, Watched] = {}
        self._by_series: dict[int, dict[UUID, Watched]] = {}
        # The first and the last slot stay false: numbers outside of the table are looked up there.
        self._watched = np.zeros(1024, dtype=np.bool_)

    def versions(self) -> dict[UUID, int]:
        """Return the versions of the models at work."""
        return {model_id: watched.model.version for model_id, watched in self._models.items()}

    def forget(self, shard: int) -> None:
        """Forget how far the models have got with a shard's points."""
        for watched in self._models.values():
            if watched.shard == shard:
                watched.state = None

    def put(self, model: Model) -> None:
        """Put a model to work, in place of an older version of it."""
        self.drop(model.id)
        watched = self._models[model.id] = Watched(model)
        self._by_series.setdefault(model.series, {})[model.id] = watched
        missing = model.series + 2 - len(self._watched)
        if missing > 0:
            self._watched = np.pad(self._watched, (0, max(missing, len(self._watched))))
        self._watched[model.series] = True

    def drop(self, model_id: UUID) -> None:
        """Let a model rest; nothing happens if it does."""
        watched = self._models.pop(model_id, None)
        if watched is None:
            return
        series = watched.model.series
        models = self._by_series[series]
        del models[model_id]
        if not models:
            del self._by_series[series]
            self._watched[series] = False

    def candidates(
        self,
        series: npt.NDArray[np.int32],
        ts: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
        quality: npt.NDArray[np.uint8],
        received: npt.NDArray[np.int64],
    ) -> list[Candidate]:
        """Return the models that any of these points concern, each with its points in order.

        The order is that of the times at which they count: what is received together is sorted.
        Late points, those of bad quality, and values that are no numbers concern no model.
        """
        at = np.flatnonzero(self._watched.take(series, mode="clip"))
        at = at[
            (quality[at] < BAD)
            & np.isfinite(values[at])
            & (received[at] - ts[at] <= self._lateness_us)
        ]
        if not len(at):
            return []
        counts = np.minimum(ts, received)
        # Stable, so that of points of the same time the first stays the first.
        at = at[np.lexsort((ts[at], counts[at], series[at]))]
        numbers, begins = np.unique(series[at], return_index=True)
        return [
            Candidate(watched, ts[part], values[part], counts[part])
            for number, part in zip(numbers.tolist(), np.split(at, begins[1:]), strict=True)
            for watched in self._by_series[number].values()
        ]
