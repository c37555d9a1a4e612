"""A rule: what it watches, when it trips, and how much that matters."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from libs.common.severity import Severity
from services.rules.domain.firing import Outcome, Points, State
from services.rules.domain.threshold import Threshold, in_digits


class Kind(StrEnum):
    """The kinds of rules. Each is a module of its own in this package, with its condition."""

    THRESHOLD = "threshold"


Condition = Threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a person says of a rule. `hold` is how long its condition must hold before it fires."""

    name: str
    kind: Kind
    device_id: UUID
    metric: str
    condition: Condition
    hold: timedelta
    severity: Severity

    def check(self) -> None:
        """Raise Invalid if its parts do not go together."""
        self.condition.check()

    def watches_like(self, other: "Definition") -> bool:
        """Whether both would fire by the same points: a name or a severity makes no difference."""
        return (self.kind, self.device_id, self.metric, self.condition, self.hold) == (
            other.kind,
            other.device_id,
            other.metric,
            other.condition,
            other.hold,
        )

    def in_words(self) -> str:
        """Return what it watches for as people say it: "above 90 for 30 s"."""
        words = self.condition.in_words()
        return f"{words} for {in_digits(self.hold.total_seconds())} s" if self.hold else words


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A tenant's rule. Each change raises its version, and a worker writes nothing by an old one."""

    tenant_id: UUID
    id: UUID
    definition: Definition
    enabled: bool
    version: int
    created_at: datetime
    updated_at: datetime

    def redefined(self, definition: Definition, *, enabled: bool, now: datetime) -> "Rule":
        """Return the rule with another definition."""
        return replace(
            self, definition=definition, enabled=enabled, version=self.version + 1, updated_at=now
        )

    def evaluate(self, state: State, points: Points) -> tuple[State, list[Outcome]]:
        """Return the state after the points, and what happened by them; see `follow`."""
        return self.definition.condition.evaluate(self.definition.hold, state, points)
