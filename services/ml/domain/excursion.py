"""From unusual points to anomalies: one for an excursion, however long that lasts.

An excursion begins with a point that passes the threshold, and ends when enough points in a row
have not. So a value that dances about the threshold is one anomaly and not a hundred.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID, uuid5


@dataclass(frozen=True, slots=True)
class Excursion:
    """Unusual points; times in µs since 1970 UTC, of points.

    `points` counts the unusual ones, `calm` those that were not, since the last unusual one.
    """

    began_at: int
    value: float
    z: float
    peak_value: float
    peak_z: float
    points: int = 1
    calm: int = 0
    ended_at: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """How far a model has got: the newest point looked at, and the excursion under way.

    That point counted at `last_at`, and its own time is `last_ts`.
    """

    last_at: int | None = None
    last_ts: int | None = None
    excursion: Excursion | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Points of one series in the order they came, with their z; times in µs since 1970 UTC.

    Each counts `at` its own time, or when it was received if that was before.
    """

    at: Sequence[int]
    ts: Sequence[int]
    values: Sequence[float]
    z: Sequence[float]


def follow(
    state: State, scored: Scored, *, threshold: float, calm_points: int
) -> tuple[State, list[Excursion]]:
    """Return the state after the points, and the excursions that these began, prolonged or ended.

    A point that is not newer than the newest looked at changes nothing. However the points are
    divided into calls, the excursions come out the same.
    """
    last_at, last_ts, current = state.last_at, state.last_ts, state.excursion
    touched: dict[int, Excursion] = {}
    for at, ts, value, z in zip(scored.at, scored.ts, scored.values, scored.z, strict=True):
        # Several points of a clock that runs ahead may count at one time; their own keeps them apart.
        if last_at is not None and last_ts is not None and (at, ts) <= (last_at, last_ts):
            continue
        last_at, last_ts = at, ts
        is_unusual = z > threshold
        if current is None:
            if not is_unusual:
                continue
            current = Excursion(ts, value, z, value, z)
        elif is_unusual:
            current = replace(current, points=current.points + 1, calm=0)
            if z > current.peak_z:
                current = replace(current, peak_value=value, peak_z=z)
        else:
            current = replace(current, calm=current.calm + 1)
            if current.calm >= calm_points:
                current = replace(current, ended_at=ts)
        touched[current.began_at] = current
        if current.ended_at is not None:
            current = None
    return State(last_at, last_ts, current), list(touched.values())


def later(state: State, other: State) -> State:
    """Return the state, moved on to the newest point that the other one looked at."""
    if other.last_at is None or other.last_ts is None:
        return state
    if (
        state.last_at is None
        or state.last_ts is None
        or (state.last_at, state.last_ts) < (other.last_at, other.last_ts)
    ):
        return replace(state, last_at=other.last_at, last_ts=other.last_ts)
    return state


def anomaly_id(model_id: UUID, began_at: int) -> UUID:
    """Return the id of the anomaly that the point at `began_at` began: always the same."""
    return uuid5(model_id, str(began_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """An excursion as it is kept. Times are UTC; `ended_at` is None while it lasts."""

    id: UUID
    model_id: UUID
    model_version: int
    device_id: UUID
    metric: str
    ts: datetime
    value: float
    expected: float
    z: float
    score: float
    peak_value: float
    peak_z: float
    points: int
    ended_at: datetime | None
    detected_at: datetime
