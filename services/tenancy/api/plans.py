"""Plans, what tenants may have by them, and what they use. For the platform's admins, but for one's own usage."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from libs.common.errors import Conflict, Invalid, NotFound, invalid
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Page
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from libs.common.quotas.terms import WARN_PERCENT, Level, Resource, Terms, next_day
from services.tenancy.api.deps import (
    CanReadTenants,
    InTenantOfPath,
    InTransaction,
    IsPlatformAdmin,
)
from services.tenancy.domain.plan import Quotas
from services.tenancy.usecases import plans as usecases

router = APIRouter(prefix="/api/v1", tags=["plans"], route_class=IdempotentRoute)

LONGEST_SPAN = timedelta(days=400)

PlanName = Annotated[str, Field(max_length=63, examples=["standard"])]
PlanOfPath = Annotated[str, Path(max_length=63)]


class QuotaIn(Body):
    """How much of something there may be."""

    most: Annotated[int | None, Field(ge=0, le=2**53, description="Null: any amount.")]
    warn_percent: Annotated[int, Field(ge=1, le=100)] = WARN_PERCENT


QuotasIn = Annotated[
    dict[Resource, QuotaIn],
    Field(examples=[{"devices": {"most": 100}, "points_per_day": {"most": 10_000_000}}]),
]


class PlanChange(Body):
    """What a plan allows. What is not named has no limit."""

    description: Annotated[str, Field(max_length=1000)] = ""
    quotas: QuotasIn


class PlanIn(PlanChange):
    """A plan to make."""

    name: PlanName


class QuotaOut(Out):
    """How much of something there may be at most (null: any amount), and from where on one is warned."""

    most: int | None
    warn_percent: int


class PlanOut(Out):
    """A plan."""

    name: Annotated[str, Field(examples=["standard"])]
    description: Annotated[str, Field(examples=["For a plant of a few halls."])]
    quotas: dict[Resource, QuotaOut]
    is_built_in: bool
    created_at: datetime
    updated_at: datetime
    version: int


class OwnQuotas(Body):
    """What a tenant has besides its plan. It takes the place of all that was set before."""

    quotas: QuotasIn


class QuotasOut(Out):
    """What a tenant may have: what its plan says, but for its own quotas."""

    plan: Annotated[str, Field(examples=["standard"])]
    quotas: dict[Resource, QuotaOut]
    own: list[Resource]
    """Those that are not the plan's."""


class StandingOut(Out):
    """Where a tenant stands against a quota now."""

    resource: Resource
    used: int
    most: int | None
    warn_percent: int
    level: Level
    resets_at: datetime | None
    """When all is there again; null for what is not used up by the day."""


class UsageDayOut(Out):
    """What was used on a day: of what is there the most at a time, of what is used up all of it."""

    day: date
    amounts: dict[Resource, int]


class UsageOut(Out):
    """What a tenant uses."""

    tenant_id: UUID
    plan: Annotated[str, Field(examples=["standard"])]
    standing: list[StandingOut]
    days: list[UsageDayOut]


@router.get("/plans")
async def list_plans(who: IsPlatformAdmin, store: InTransaction) -> Page[PlanOut]:
    """List all plans by name. All come on one page."""
    plans = await store.plans.all()
    return Page(items=[PlanOut.model_validate(plan) for plan in plans], next_cursor=None)


@router.post("/plans", status_code=201, responses=problems(Conflict, Invalid))
async def create_plan(
    body: PlanIn, who: IsPlatformAdmin, store: InTransaction, now: Now
) -> PlanOut:
    """Make a plan."""
    plan = await usecases.create(
        store,
        name=body.name,
        description=body.description,
        quotas=read_quotas(body.quotas),
        at=now,
    )
    return PlanOut.model_validate(plan)


@router.put("/plans/{plan_name}", responses=problems(NotFound))
async def change_plan(
    plan_name: PlanOfPath,
    body: PlanChange,
    who: IsPlatformAdmin,
    store: InTransaction,
    now: Now,
) -> PlanOut:
    """Let a plan allow something else. It holds for its tenants within seconds.

    Nothing of what a tenant has is taken away; it may have no more.
    """
    plan = await usecases.change(
        store,
        plan_name,
        description=body.description,
        quotas=read_quotas(body.quotas),
        at=now,
    )
    return PlanOut.model_validate(plan)


@router.delete("/plans/{plan_name}", status_code=204, responses=problems(NotFound, Conflict))
async def remove_plan(
    plan_name: PlanOfPath, who: IsPlatformAdmin, store: InTransaction
) -> Response:
    """Remove a plan that no tenant has. Built-in ones stay."""
    await usecases.remove(store, plan_name)
    return Response(status_code=204)


@router.put("/tenants/{tenant_id}/quotas", responses=problems(NotFound))
async def set_own_quotas(
    tenant_id: UUID, body: OwnQuotas, who: IsPlatformAdmin, store: InTenantOfPath, now: Now
) -> QuotasOut:
    """Let a tenant have more or less than its plan says. What is not named is as in the plan."""
    own = read_quotas(body.quotas)
    tenant = await usecases.set_own_quotas(store, tenant_id, own, at=now)
    in_force = await store.quotas.all()
    return QuotasOut(
        plan=tenant.plan,
        quotas={resource: QuotaOut.model_validate(terms) for resource, terms in in_force.items()},
        own=list(own),
    )


@router.get("/tenants/{tenant_id}/usage", responses=problems(NotFound, Invalid))
async def get_usage(
    tenant_id: UUID,
    who: CanReadTenants,
    store: InTenantOfPath,
    now: Now,
    since: Annotated[
        date | None, Query(alias="from", description="Absent: 30 days before the last day.")
    ] = None,
    until: Annotated[
        date | None, Query(alias="to", description="The last day. Absent: today.")
    ] = None,
) -> UsageOut:
    """Return what the tenant used by day (UTC), and where it stands against its quotas now."""
    tenant = await store.tenants.get(tenant_id)
    today = now.astimezone(UTC).date()
    last = until or today
    first = since or last - min(timedelta(days=30), last - date.min)
    if first > last:
        raise invalid("?from", "must not lie after `to`")
    if last - first > LONGEST_SPAN:
        raise invalid("?from", f"a span has at most {LONGEST_SPAN.days} days")
    quotas = await store.quotas.all()
    used = {s.resource: s.on(today).amount for s in await store.usage.standings()}
    return UsageOut(
        tenant_id=tenant.id,
        plan=tenant.plan,
        standing=[
            _standing(resource, used.get(resource, 0), quotas.get(resource, Terms(None)), now)
            for resource in Resource
            # Of what flows there is no standing: it is as it is each second.
            if resource is not Resource.POINTS_PER_SECOND
        ],
        days=[UsageDayOut.model_validate(day) for day in await store.usage.days(first, last)],
    )


def read_quotas(quotas: dict[Resource, QuotaIn]) -> Quotas:
    """Return quotas as a body names them."""
    return {resource: Terms(quota.most, quota.warn_percent) for resource, quota in quotas.items()}


def _standing(resource: Resource, used: int, terms: Terms, now: datetime) -> StandingOut:
    return StandingOut(
        resource=resource,
        used=used,
        most=terms.most,
        warn_percent=terms.warn_percent,
        level=terms.level(used),
        resets_at=next_day(now) if resource.is_per_day else None,
    )
