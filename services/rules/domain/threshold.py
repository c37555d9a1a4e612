"""Threshold rules: a value beyond a limit, with another limit for the way back."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from libs.common.errors import invalid
from services.rules.domain.firing import Outcome, Points, State, follow


class Operator(StrEnum):
    """How a value is compared with the limit."""

    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    EQ = "eq"
    NEQ = "neq"


_COMPARE: dict[Operator, Callable[[float, float], bool]] = {
    Operator.GT: operator.gt,
    Operator.GTE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LTE: operator.le,
    Operator.EQ: operator.eq,
    Operator.NEQ: operator.ne,
}

_WORDS = {
    Operator.GT: "above",
    Operator.GTE: "at or above",
    Operator.LT: "below",
    Operator.LTE: "at or below",
    Operator.EQ: "equal to",
    Operator.NEQ: "other than",
}


@dataclass(frozen=True, slots=True)
class Threshold:
    """Trips when `<point> <operator> <value>`, and clears when `<point> <operator> <clear_value>` fails.

    So "gt 90, clear 80" trips above 90 and clears at 80 or below; in between it stays as it was.
    Without a `clear_value` it clears where it trips.
    """

    operator: Operator
    value: float
    clear_value: float | None = None

    def check(self) -> None:
        """Raise Invalid if the clearing limit does not lie on the clearing side of the other."""
        if self.clear_value is None:
            return
        match self.operator:
            case Operator.GT | Operator.GTE:
                is_wrong, side = self.clear_value > self.value, "at or below"
            case Operator.LT | Operator.LTE:
                is_wrong, side = self.clear_value < self.value, "at or above"
            case _:
                raise invalid(
                    "#/condition/clear_value", f"{self.operator} clears by itself; leave it out"
                )
        if is_wrong:
            raise invalid(
                "#/condition/clear_value",
                f"for {self.operator} it must lie {side} the value, {in_digits(self.value)}",
            )

    def evaluate(
        self, hold: timedelta, state: State, points: Points
    ) -> tuple[State, list[Outcome]]:
        """Return the state after the points, and what happened by them; see `follow`."""
        compare, value, clear_value = _COMPARE[self.operator], self.value, self.clear_value
        trips = [compare(v, value) for v in points.values]
        stays = trips if clear_value is None else [compare(v, clear_value) for v in points.values]
        return follow(state, hold, points, trips, stays)

    def in_words(self) -> str:
        """Return the condition as people say it: "above 90"."""
        return f"{_WORDS[self.operator]} {in_digits(self.value)}"


def in_digits(number: float) -> str:
    """Return a number as people write it: 90 instead of 90.0."""
    return f"{number:.15g}"
