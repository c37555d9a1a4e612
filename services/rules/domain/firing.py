"""The life of a firing: a condition holds for long enough, the rule fires, until the condition ends.

It is the same for every kind of rule. A kind only says of each point whether the rule would trip
by it, and whether one that has fired would stay so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid5

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one series in the order they came: `ts` in µs since 1970 UTC, values finite."""

    ts: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class State:
    """How far a rule has got with a device; times in µs since 1970 UTC, of points.

    `last_ts` is the newest point looked at. `since`: the condition has held from that point on,
    but not yet for long enough. `fired_at`: the point that fired; it is None unless the rule is
    tripped, and `since` is None if it is.
    """

    last_ts: int | None = None
    since: int | None = None
    fired_at: int | None = None

    @property
    def is_tripped(self) -> bool:
        """Whether a firing is under way."""
        return self.fired_at is not None

    def differs_from(self, other: "State") -> bool:
        """Whether more has changed than how far the points have been looked at."""
        return self.since != other.since or self.fired_at != other.fired_at


@dataclass(frozen=True, slots=True)
class Fired:
    """The rule tripped by this point."""

    ts: int
    value: float


@dataclass(frozen=True, slots=True)
class Cleared:
    """The firing that began at `fired_at` ended by this point."""

    fired_at: int
    ts: int
    value: float


Outcome = Fired | Cleared


def follow(
    state: State,
    hold: timedelta,
    points: Points,
    trips: Sequence[bool],
    stays: Sequence[bool],
) -> tuple[State, list[Outcome]]:
    """Lead a firing's life on by some points: return the state after them, and what happened.

    `trips[i]`: the rule would trip by point i; `stays[i]`: it would stay tripped. It fires by the
    first point at which the condition has held for `hold`, by the points' own time.
    A point that is not newer than the newest looked at changes nothing: late points never wake
    anyone, and points that come twice count once.
    However the points are divided into calls, the outcomes are the same.
    """
    hold_us = hold // _MICROSECOND
    last_ts, since, fired_at = state.last_ts, state.since, state.fired_at
    outcomes: list[Outcome] = []
    for ts, value, trip, stay in zip(points.ts, points.values, trips, stays, strict=True):
        if last_ts is not None and ts <= last_ts:
            continue
        last_ts = ts
        if fired_at is not None:
            if not stay:
                outcomes.append(Cleared(fired_at, ts, value))
                fired_at = None
        elif not trip:
            since = None
        else:
            if since is None:
                since = ts
            if ts - since >= hold_us:
                outcomes.append(Fired(ts, value))
                since, fired_at = None, ts
    return State(last_ts, since, fired_at), outcomes


def firing_id(rule_id: UUID, device_id: UUID, fired_at: int) -> UUID:
    """Return the id of the firing that the device's point at `fired_at` began: always the same."""
    return uuid5(rule_id, f"{device_id} {fired_at}")
