"""What a tenant uses, by day, and what is said of it."""

from dataclasses import dataclass, replace
from datetime import date

from libs.common.quotas.terms import Level, Resource, Terms

_ORDER = (Level.WITHIN, Level.WARNING, Level.REACHED)


@dataclass(frozen=True, slots=True)
class Standing:
    """How much of a resource a tenant has, or has used on a day; and what was said of that.

    `level` is where it stands. `worst` is the worst that was said on the day `worst_on`.
    """

    resource: Resource
    day: date
    amount: int
    level: Level = Level.WITHIN
    worst: Level = Level.WITHIN
    worst_on: date = date.min

    def on(self, day: date) -> "Standing":
        """Return it as it is on a day: what is used up by the day is all there again on a new one."""
        if self.resource.is_per_day and day > self.day:
            return replace(self, day=day, amount=0)
        return replace(self, day=max(day, self.day))


def judge(standing: Standing, terms: Terms) -> tuple[Standing, Level | None]:
    """Return the standing with its level, and what is to be said of it: None, if nothing is.

    The same is said once a day, so that who goes to and fro over the line calls nobody each time.
    """
    level = terms.level(standing.amount)
    changed = replace(standing, level=level)
    if level is Level.WITHIN:
        return changed, Level.WITHIN if standing.level is not Level.WITHIN else None
    worst = standing.worst if standing.worst_on == standing.day else Level.WITHIN
    if _ORDER.index(level) <= _ORDER.index(worst):
        return changed, None
    return replace(changed, worst=level, worst_on=standing.day), level


@dataclass(frozen=True, slots=True)
class Day:
    """What was used on a day."""

    day: date
    amounts: dict[Resource, int]
