"""How much may be asked for: read, tried out and set at run time."""

from datetime import datetime
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Response
from pydantic import Field

from libs.common.errors import Conflict, Forbidden, Invalid, NotFound
from libs.common.http.doors import Now
from libs.common.http.idempotency import repeatable
from libs.common.http.pages import Page
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.gateway.api.deps import (
    CanReadRateLimits,
    CanWriteRateLimits,
    InScope,
    KnownRateLimits,
    LimitsOf,
)
from services.gateway.domain.policy import INSTALLATION, Asking, CallerKind, Match, Per, Policy
from services.gateway.usecases import rate_limits as usecases

router = APIRouter(prefix="/api/v1/rate-limits", tags=["rate limits"])

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
Path = Annotated[
    str,
    Field(
        max_length=256,
        pattern=r"^/api/v1(/[A-Za-z0-9._~{}-]+)*$",
        examples=["/api/v1/devices/{id}/commands"],
        description="All below it. `{id}`, or any name in braces, stands for any one part.",
    ),
]
Amount = Annotated[int, Field(ge=1, le=100_000)]


class MatchBody(Body):
    """Who and what a limit is about. What is left out is about everything."""

    path: Path | None = None
    methods: Annotated[list[Method], Field(default_factory=list, max_length=6)]
    role: Annotated[
        str | None, Field(max_length=64, description="The name of a role.", examples=["operator"])
    ] = None
    plan: Annotated[
        str | None, Field(max_length=64, description="The tenant's plan.", examples=["standard"])
    ] = None
    kind: CallerKind | None = None
    principal_id: Annotated[UUID | None, Field(description="One user or API key alone.")] = None
    networks: Annotated[
        list[IPv4Network | IPv6Network],
        Field(default_factory=list, max_length=50, examples=[["203.0.113.0/24"]]),
    ]


class RateLimitIn(Body):
    """How much may be asked for, by whom and of what."""

    name: Annotated[
        str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", examples=["night-shift-analytics"])
    ]
    match: Annotated[MatchBody, Field(default_factory=MatchBody)]
    requests: Annotated[Amount | None, Field(description="Null: no limit for who matches.")]
    per: Per = Per.MINUTE
    burst: Annotated[
        Amount | None, Field(description="How many of them may come within a second.")
    ] = None
    cost: Annotated[Amount, Field(description="As how many a request counts.")] = 1


class MatchOut(Out):
    """Who and what a limit is about."""

    path: Annotated[str | None, Field(examples=["/api/v1/analytics"])]
    methods: Annotated[list[str], Field(examples=[["GET", "POST"]])]
    role: Annotated[str | None, Field(examples=["operator"])]
    plan: Annotated[str | None, Field(examples=["standard"])]
    kind: CallerKind | None
    principal_id: UUID | None
    networks: Annotated[list[str], Field(examples=[["203.0.113.0/24"]])]


class RateLimitOut(Out):
    """A limit. One that the platform set can only be changed by its administrators."""

    id: UUID
    tenant_id: Annotated[UUID | None, Field(description="Null: the whole installation's.")]
    by_platform: bool
    name: Annotated[str, Field(examples=["night-shift-analytics"])]
    match: MatchOut
    requests: int | None
    per: Per
    burst: int | None
    cost: int
    updated_at: Annotated[datetime | None, Field(description="Null: a default.")]


class EffectiveOut(Out):
    """What holds for a request, each of them counted; none: it is not limited."""

    limits: list[RateLimitOut]


@router.get("", responses=problems(Forbidden))
async def list_rate_limits(who: CanReadRateLimits, store: InScope) -> Page[RateLimitOut]:
    """List the limits that were set for the tenant, by name. All come on one page.

    The platform's administrators see those of the installation, or of any tenant.
    """
    return Page(items=[_out(p) for p in await store.rate_limits.all()], next_cursor=None)


@router.get("/effective", responses=problems(Forbidden))
async def get_effective_rate_limits(
    who: CanReadRateLimits,
    tenant_id: LimitsOf,
    limits: KnownRateLimits,
    path: Annotated[str, Query(max_length=2048, examples=["/api/v1/devices"])],
    method: Method = "GET",
    kind: CallerKind = CallerKind.USER,
    role: Annotated[list[str], Query(max_length=50)] = [],  # noqa: B006 - a default that is only read
    plan: Annotated[str | None, Query(max_length=64)] = None,
    principal_id: UUID | None = None,
    address: Annotated[str, Query(max_length=64, examples=["203.0.113.7"])] = "",
) -> EffectiveOut:
    """Find out which limits hold for a request, here and now, and count nothing."""
    asking = Asking(
        kind,
        "",
        method,
        path,
        address,
        None if tenant_id == INSTALLATION else tenant_id,
        principal_id,
        frozenset(role),
        plan,
    )
    return EffectiveOut(limits=[_out(policy) for policy in limits.deciding(asking)])


@router.post("", status_code=201, responses=problems(Conflict, Forbidden, Invalid))
@repeatable("a name is given once: the second time it is a conflict")
async def create_rate_limit(
    body: RateLimitIn, who: CanWriteRateLimits, store: InScope, now: Now
) -> RateLimitOut:
    """Set a limit. It holds within seconds.

    What a tenant sets for itself is counted besides what the platform allows: it can only tighten.
    """
    policy = _policy(uuid4(), body, store.tenant_id, by_platform=who.platform_admin)
    await usecases.create(store, policy, at=now)
    return _out(await store.rate_limits.get(policy.id))


@router.put("/{limit_id}", responses=problems(NotFound, Conflict, Forbidden, Invalid))
async def replace_rate_limit(
    limit_id: UUID, body: RateLimitIn, who: CanWriteRateLimits, store: InScope, now: Now
) -> RateLimitOut:
    """Replace a limit. What was counted against the old one does not count against the new."""
    policy = _policy(limit_id, body, store.tenant_id, by_platform=who.platform_admin)
    await usecases.replace(store, policy, at=now)
    return _out(await store.rate_limits.get(limit_id))


@router.delete("/{limit_id}", status_code=204, responses=problems(NotFound, Forbidden))
async def remove_rate_limit(
    limit_id: UUID, who: CanWriteRateLimits, store: InScope, now: Now
) -> Response:
    """Remove a limit: the next most specific one holds then."""
    await usecases.remove(store, limit_id, by_platform=who.platform_admin, at=now)
    return Response(status_code=204)


def _policy(policy_id: UUID, body: RateLimitIn, tenant_id: UUID, *, by_platform: bool) -> Policy:
    match = body.match
    return Policy(
        id=policy_id,
        tenant_id=tenant_id,
        by_platform=by_platform,
        name=body.name,
        match=Match(
            path=match.path,
            methods=frozenset(match.methods),
            role=match.role,
            plan=match.plan,
            kind=match.kind,
            subject=match.principal_id,
            networks=tuple(match.networks),
        ),
        requests=body.requests,
        per=body.per,
        burst=body.burst,
        cost=body.cost,
    )


def _out(policy: Policy) -> RateLimitOut:
    match = policy.match
    return RateLimitOut(
        id=policy.id,
        tenant_id=None if policy.tenant_id == INSTALLATION else policy.tenant_id,
        by_platform=policy.by_platform,
        name=policy.name,
        match=MatchOut(
            path=match.path,
            methods=sorted(match.methods),
            role=match.role,
            plan=match.plan,
            kind=match.kind,
            principal_id=match.subject,
            networks=[str(network) for network in match.networks],
        ),
        requests=policy.requests,
        per=policy.per,
        burst=policy.burst,
        cost=policy.cost,
        updated_at=policy.updated_at,
    )
