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
    """How far a model has got: the newest point looked at, and the excursion under way."""

    last_ts: int | None = None
    excursion: Excursion | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Points of one series in the order they came, with their z; `ts` in µs since 1970 UTC."""

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
    last_ts, current = state.last_ts, state.excursion
    touched: dict[int, Excursion] = {}
    for ts, value, z in zip(scored.ts, scored.values, scored.z, strict=True):
        if last_ts is not None and ts <= last_ts:
            continue
        last_ts = ts
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
    return State(last_ts, current), list(touched.values())


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
