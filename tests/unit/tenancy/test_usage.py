"""Where a tenant stands against its quotas, and what is said of it."""

from datetime import date

from libs.common.quotas.terms import Level, Resource, Terms
from services.tenancy.domain.plan import in_force
from services.tenancy.domain.usage import Standing, judge

MONDAY, TUESDAY = date(2026, 11, 23), date(2026, 11, 24)
TEN = Terms(10, warn_percent=80)


def test_a_tenant_is_warned_near_its_quota_and_told_when_it_is_reached() -> None:
    assert [TEN.level(used) for used in (0, 7, 8, 9, 10, 12)] == [
        Level.WITHIN,
        Level.WITHIN,
        Level.WARNING,
        Level.WARNING,
        Level.REACHED,
        Level.REACHED,
    ]
    assert Terms(None).level(10**12) is Level.WITHIN
    assert Terms(0).level(0) is Level.WITHIN
    assert Terms(1).level(1) is Level.REACHED


def _told(amounts: list[tuple[date, int]], resource: Resource) -> list[Level | None]:
    standing = Standing(resource, MONDAY, 0)
    words = []
    for day, amount in amounts:
        before = standing.on(day)
        standing, word = judge(
            Standing(resource, day, amount, before.level, before.worst, before.worst_on), TEN
        )
        words.append(word)
    return words


def test_the_same_is_said_once_a_day() -> None:
    day = [(MONDAY, 8), (MONDAY, 9), (MONDAY, 10), (MONDAY, 10), (MONDAY, 7), (MONDAY, 10)]
    assert _told(day, Resource.DEVICES) == [
        Level.WARNING,
        None,
        Level.REACHED,
        None,
        Level.WITHIN,
        None,  # it was said today
    ]
    assert _told([*day, (TUESDAY, 10)], Resource.DEVICES)[-1] is Level.REACHED


def test_what_is_used_up_by_the_day_is_all_there_the_next() -> None:
    standing = Standing(Resource.POINTS_PER_DAY, MONDAY, 10, Level.REACHED, Level.REACHED, MONDAY)
    next_day, word = judge(standing.on(TUESDAY), TEN)
    assert (next_day.amount, next_day.level, word) == (0, Level.WITHIN, Level.WITHIN)
    devices = Standing(Resource.DEVICES, MONDAY, 10, Level.REACHED, Level.REACHED, MONDAY)
    assert devices.on(TUESDAY).amount == 10


def test_a_tenants_own_terms_stand_before_its_plans() -> None:
    plan = {Resource.DEVICES: TEN, Resource.USERS: Terms(3)}
    quotas = in_force(plan, {Resource.DEVICES: Terms(None)})
    assert quotas[Resource.DEVICES].most is None
    assert quotas[Resource.USERS].most == 3
    assert quotas[Resource.RULES].most is None
    assert set(quotas) == set(Resource)
