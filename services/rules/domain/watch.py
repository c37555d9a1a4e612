"""Which points any rule waits for: from a column of series numbers to the rules, in a few steps.

Nearly all points concern no rule, so they are sorted out a column at a time, by a table with a
byte for each series number. Series are described when they are first seen; of one that no rule
watches only a hash is kept (8 bytes), by which it is found again when a rule for it comes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt

from services.rules.domain.firing import Points, State
from services.rules.domain.rule import Rule

UNKNOWN, IDLE, WATCHED = 0, 1, 2

BAD = 2
"""The worst quality of a point; see libs.common.historian.point."""

MAX_ABSENT = 10_000


class SeriesKey(NamedTuple):
    """What a series is, in words. A rule sees the points of its own tenant's device alone."""

    tenant_id: UUID
    device_id: UUID
    metric: str


@dataclass(slots=True)
class Held:
    """A state in memory: of which shard its points are, and what was written last."""

    shard: int
    state: State
    written: State


@dataclass(slots=True, eq=False)
class Watched:
    """A rule at work, and how far it has got with each device that it has met.

    A rule that changes becomes another Watched: what is still being worked out by the old one
    cannot reach the new.
    """

    rule: Rule
    held: dict[UUID, Held] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule with points it waits for."""

    watched: Watched
    device_id: UUID
    points: Points


class Watch:
    """The rules in force, by the series they watch.

    A point that comes more than `lateness` after its own time is late.
    """

    def __init__(self, lateness: timedelta) -> None:
        self._lateness = lateness
        self._rules: dict[UUID, Watched] = {}
        self._by_key: dict[SeriesKey, dict[UUID, Watched]] = {}
        self._numbers: dict[SeriesKey, int] = {}
        # The same as `_by_key`, by number: the hash of a key costs more than all else of a point.
        self._by_number: dict[int, tuple[UUID, dict[UUID, Watched]]] = {}
        # The first and the last slot stay unknown: numbers outside of the table are looked up there.
        self._codes = np.zeros(1024, dtype=np.uint8)
        self._hashes = np.zeros(1024, dtype=np.int64)
        self._absent: set[int] = set()

    def versions(self) -> dict[UUID, int]:
        """Return the versions of the rules in force."""
        return {rule_id: watched.rule.version for rule_id, watched in self._rules.items()}

    def all_watched(self) -> Iterable[Watched]:
        """Return every rule at work."""
        return self._rules.values()

    def put(self, rule: Rule) -> None:
        """Put a rule into force, in place of an older version of it."""
        key = _key_of(rule)
        before = self._rules.get(rule.id)
        if before is not None and _key_of(before.rule) != key:
            self.drop(rule.id)
        watched = self._rules[rule.id] = Watched(rule)
        rules = self._by_key.setdefault(key, {})
        rules[rule.id] = watched
        if key not in self._numbers:
            # If its series was seen before, it is described once more, now to be kept.
            self._codes[np.flatnonzero(self._hashes == hash(key))] = UNKNOWN

    def drop(self, rule_id: UUID) -> None:
        """Take a rule out of force; nothing happens if it is not."""
        watched = self._rules.pop(rule_id, None)
        if watched is None:
            return
        key = _key_of(watched.rule)
        rules = self._by_key[key]
        del rules[rule_id]
        if not rules:
            del self._by_key[key]
            number = self._numbers.pop(key, None)
            if number is not None:
                del self._by_number[number]
                self._codes[number] = IDLE

    def undescribed(self, series: npt.NDArray[np.int32]) -> list[int]:
        """Return the numbers among these of which it is not known yet what they are."""
        unknown = series[self._codes.take(series, mode="clip") == UNKNOWN]
        if not len(unknown):
            return []
        return sorted(set(unknown.tolist()) - self._absent)

    def describe(self, asked: Sequence[int], found: Iterable[tuple[int, SeriesKey]]) -> None:
        """Learn what these series are. Those asked for and not found are left alone for a while."""
        absent = set(asked)
        for number, key in found:
            absent.discard(number)
            self._make_room(number)
            self._hashes[number] = hash(key)
            if key in self._by_key:
                self._codes[number] = WATCHED
                self._numbers[key] = number
                self._by_number[number] = (key.device_id, self._by_key[key])
            else:
                self._codes[number] = IDLE
        if len(self._absent) + len(absent) > MAX_ABSENT:
            self._absent.clear()
        self._absent |= absent

    def forget_absent(self) -> None:
        """Let the series that were not found be asked for again."""
        self._absent.clear()

    def concerns(self, series: npt.NDArray[np.int32]) -> bool:
        """Whether a rule waits for points of any of these series."""
        return bool((self._codes.take(series, mode="clip") == WATCHED).any())

    def candidates(
        self,
        series: npt.NDArray[np.int32],
        ts: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
        quality: npt.NDArray[np.uint8],
        received: npt.NDArray[np.int64],
    ) -> list[Candidate]:
        """Return the rules that any of these points concern, each with its points in order.

        The order is that of the times at which they count: what is received together is sorted.
        Points of bad quality, and values that are no numbers, concern no rule.
        """
        at = np.flatnonzero(self._codes.take(series, mode="clip") == WATCHED)
        if not len(at):
            return []
        at = at[(quality[at] < BAD) & np.isfinite(values[at])]
        if not len(at):
            return []
        counts = np.minimum(ts[at], received[at])
        # Stable, so that of points of the same time the first stays the first.
        at = at[np.lexsort((ts[at], counts, series[at]))]
        numbers, begins = np.unique(series[at], return_index=True)
        candidates: list[Candidate] = []
        for number, part in zip(numbers.tolist(), np.split(at, begins[1:]), strict=True):
            device_id, rules = self._by_number[number]
            points = Points.received(
                ts[part].tolist(), values[part].tolist(), received[part].tolist(), self._lateness
            )
            candidates.extend(Candidate(watched, device_id, points) for watched in rules.values())
        return candidates

    def _make_room(self, number: int) -> None:
        if number + 1 < len(self._codes):
            return
        missing = max(number + 2, 2 * len(self._codes)) - len(self._codes)
        self._codes = np.pad(self._codes, (0, missing))
        self._hashes = np.pad(self._hashes, (0, missing))


def _key_of(rule: Rule) -> SeriesKey:
    return SeriesKey(rule.tenant_id, rule.definition.device_id, rule.definition.metric)
