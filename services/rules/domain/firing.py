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
    """Points of one series in the order they came; times in µs since 1970 UTC, values finite.

    A point counts `at` its own time, or when it was received if that was before: a clock that runs
    ahead moves nothing into the future. It is `late` if it came too long after its own time.
    """

    ts: Sequence[int]
    values: Sequence[float]
    at: Sequence[int]
    late: Sequence[bool]

    @staticmethod
    def on_time(ts: Sequence[int], values: Sequence[float]) -> "Points":
        """Return points that were received just as they were measured."""
        return Points(ts, values, ts, [False] * len(ts))

    @staticmethod
    def received(
        ts: Sequence[int], values: Sequence[float], received: Sequence[int], lateness: timedelta
    ) -> "Points":
        """Return points received at these times; more than `lateness` after their own is late."""
        lateness_us = lateness // _MICROSECOND
        return Points(
            ts,
            values,
            [min(pair) for pair in zip(ts, received, strict=True)],
            [r - t > lateness_us for t, r in zip(ts, received, strict=True)],
        )


@dataclass(frozen=True, slots=True)
class State:
    """How far a rule has got with a device; times in µs since 1970 UTC.

    The newest point looked at counted at `last_at` and has the time `last_ts`. `since`: the
    condition has held from then on, but not yet for long enough. `fired_at`: the time of the point
    that fired; it is None unless the rule is tripped, and `since` is None if it is.
    """

    last_at: int | None = None
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
    """The rule tripped by this point, which counted at `at`."""

    at: int
    ts: int
    value: float


@dataclass(frozen=True, slots=True)
class Cleared:
    """The firing that began at `fired_at` ended by this point, which counted at `at`."""

    fired_at: int
    at: int
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
    first point at which the condition has held for `hold`, by the times at which points count.
    A point that is not newer than the newest looked at changes nothing, so points that come twice
    count once. A late point neither begins, fires nor clears: it can only show that a condition
    did not hold all the time.
    However the points are divided into calls, the outcomes are the same.
    """
    hold_us = hold // _MICROSECOND
    last_at, last_ts, since, fired_at = state.last_at, state.last_ts, state.since, state.fired_at
    outcomes: list[Outcome] = []
    for ts, value, at, late, trip, stay in zip(
        points.ts, points.values, points.at, points.late, trips, stays, strict=True
    ):
        # Several points of a clock that runs ahead may count at one time; their own keeps them apart.
        if last_at is not None and last_ts is not None and (at, ts) <= (last_at, last_ts):
            continue
        last_at, last_ts = at, ts
        if fired_at is not None:
            if not stay and not late:
                outcomes.append(Cleared(fired_at, at, ts, value))
                fired_at = None
        elif not trip:
            since = None
        elif not late:
            if since is None:
                since = at
            if at - since >= hold_us:
                outcomes.append(Fired(at, ts, value))
                since, fired_at = None, ts
    return State(last_at, last_ts, since, fired_at), outcomes


def firing_id(rule_id: UUID, device_id: UUID, fired_at: int) -> UUID:
    """Return the id of the firing that the device's point at `fired_at` began: always the same."""
    return uuid5(rule_id, f"{device_id} {fired_at}")
