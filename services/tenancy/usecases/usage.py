"""What tenants use: counted by those who see it, added up and judged here."""

from datetime import UTC, date, datetime
from typing import Literal

from libs.common.events.tenancy import QuotaExceeded, QuotaRelieved
from libs.common.quotas.terms import Level, Resource, Terms
from services.tenancy.domain.usage import Standing, judge
from services.tenancy.store.store import TenancyStore


async def count(
    store: TenancyStore,
    resource: Resource,
    amount: int,
    *,
    day: date,
    how: Literal["added", "total", "standing"],
    at: datetime,
) -> None:
    """Count what a tenant used, and say so if it comes near a quota, or well away from it."""
    await store.usage.take_turn()
    of_day = await store.usage.count(day, resource, amount, how)
    before = await store.usage.standing(resource)
    if before is None:
        before = Standing(resource, day, 0)
    if day < before.day:
        return  # of a day that is over, of which nobody can be warned any more
    now = before.on(day)
    used = of_day if resource.is_per_day else amount
    await _judge(
        store,
        Standing(resource, day, used, now.level, now.worst, now.worst_on),
        await store.quotas.of(resource),
        at=at,
    )


async def count_own(store: TenancyStore, resource: Resource, amount: int, *, at: datetime) -> None:
    """Count what tenancy itself keeps: how many there are now."""
    await count(store, resource, amount, day=at.astimezone(UTC).date(), how="standing", at=at)


async def judge_all(store: TenancyStore, *, at: datetime) -> None:
    """Judge where a tenant stands anew: its quotas changed, or a new day has begun."""
    await store.usage.take_turn()
    terms = await store.quotas.all()
    for standing in await store.usage.standings():
        today = standing.on(at.astimezone(UTC).date())
        await _judge(store, today, terms.get(standing.resource, Terms(None)), at=at)


async def _judge(store: TenancyStore, standing: Standing, terms: Terms, *, at: datetime) -> None:
    judged, word = judge(standing, terms)
    await store.usage.put(judged)
    if word is Level.WITHIN:
        store.emit(
            QuotaRelieved(tenant_id=store.tenant_id, at=at, resource=standing.resource.value)
        )
    elif word is not None and terms.most is not None:
        store.emit(
            QuotaExceeded(
                tenant_id=store.tenant_id,
                at=at,
                resource=standing.resource.value,
                level=word.value,
                most=terms.most,
                used=standing.amount,
            )
        )
