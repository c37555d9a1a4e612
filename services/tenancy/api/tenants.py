"""Tenants: opened and closed by the platform's admins, seen by their own users."""

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from libs.common.email import normalise_email
from libs.common.errors import Conflict, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    AllAccounts,
    CanReadTenants,
    InNewTenant,
    InTenantOfPath,
    InTenantToAdminister,
    IsPlatformAdmin,
    NewInvitation,
    SeenVersion,
)
from services.tenancy.api.plans import PlanName, QuotasIn, read_quotas
from services.tenancy.api.schemas import Email, InvitedUserOut, Name, invited_out
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.usecases import tenants as usecases
from services.tenancy.usecases import users

router = APIRouter(prefix="/api/v1/tenants", tags=["tenants"], route_class=IdempotentRoute)


class FirstAdmin(Body):
    """Who is invited to administer a tenant that nobody administers yet."""

    email: Email
    name: Name


class TenantIn(Body):
    """A tenant to open."""

    slug: Annotated[str, Field(max_length=63, examples=["acme-steel"])]
    name: Name
    admin: FirstAdmin | None = None
    """Absent: to be invited later."""
    plan: PlanName | None = None
    """Absent: the installation's default, TENANCY_DEFAULT_PLAN."""
    quotas: QuotasIn = Field(default_factory=dict)
    """What differs from the plan."""


class TenantChange(Body):
    """What is to change of a tenant; what is left out stays."""

    name: Name | None = None
    plan: PlanName | None = None
    status: Literal[TenantStatus.ACTIVE, TenantStatus.SUSPENDED] | None = None


class TenantReplacement(Body):
    """All that may be set of a tenant."""

    name: Name
    plan: PlanName


class Reason(Body):
    """Why something is done to a tenant."""

    reason: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")] = ""


class TenantOut(Out):
    """A tenant."""

    id: UUID
    slug: Annotated[str, Field(examples=["acme-steel"])]
    name: Annotated[str, Field(examples=["Acme Steel"])]
    status: TenantStatus
    status_reason: Annotated[str, Field(examples=[""])]
    """Why it is suspended or closing."""
    erased_from: datetime | None
    """Of one that is closing: when it is erased."""
    plan: Annotated[str, Field(examples=["standard"])]
    created_at: datetime
    updated_at: datetime
    version: int


class NewTenantOut(TenantOut):
    """A tenant that was opened."""

    admin: InvitedUserOut | None
    """Who was invited to administer it."""


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(NotFound, Conflict))
async def create_tenant(
    request: Request,
    body: TenantIn,
    who: IsPlatformAdmin,
    store: InNewTenant,
    invitation: NewInvitation,
    now: Now,
) -> NewTenantOut:
    """Open a tenant, and invite its first administrator if one is given."""
    tenant = await usecases.create(
        store,
        slug=body.slug,
        name=body.name,
        plan=body.plan or request.app.state.settings.default_plan,
        own_quotas=read_quotas(body.quotas),
        at=now,
    )
    invited = None
    if body.admin:
        email = normalise_email(body.admin.email, "#/admin/email")
        admin = await users.invite_admin(
            store, uuid4(), invitation, email=email, name=body.admin.name, at=now
        )
        invited = invited_out(admin, invitation)
    return NewTenantOut(**TenantOut.model_validate(tenant).model_dump(), admin=invited)


@router.post("/{tenant_id}/admins", status_code=201, responses=problems(NotFound, Conflict))
async def invite_admin(
    tenant_id: UUID,
    body: FirstAdmin,
    who: IsPlatformAdmin,
    store: InTenantToAdminister,
    invitation: NewInvitation,
    now: Now,
) -> InvitedUserOut:
    """Invite an administrator, or invite them again, while nobody administers the tenant."""
    admin = await users.invite_admin(
        store, uuid4(), invitation, email=normalise_email(body.email), name=body.name, at=now
    )
    return invited_out(admin, invitation)


@router.get("", responses=problems(Malformed))
async def list_tenants(
    who: IsPlatformAdmin, accounts: AllAccounts, limit: Limit, cursor: Cursor
) -> Page[TenantOut]:
    """List all tenants, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    tenants = await accounts.tenants(limit + 1, after)
    more, tenants = len(tenants) > limit, tenants[:limit]
    return Page(
        items=[TenantOut.model_validate(tenant) for tenant in tenants],
        next_cursor=encode_cursor(_Position(tenants[-1].created_at, tenants[-1].id))
        if more
        else None,
    )


@router.get("/{tenant_id}", responses=problems(NotFound))
async def get_tenant(tenant_id: UUID, who: CanReadTenants, store: InTenantOfPath) -> TenantOut:
    """Return the tenant you work for; the platform's admins see any."""
    return TenantOut.model_validate(await store.tenants.get(tenant_id))


@router.patch("/{tenant_id}", responses=problems(NotFound, Conflict, PreconditionFailed))
async def change_tenant(
    tenant_id: UUID,
    body: TenantChange,
    who: IsPlatformAdmin,
    store: InTenantOfPath,
    version: SeenVersion,
    now: Now,
) -> TenantOut:
    """Rename a tenant, give it another plan, suspend it (nobody enters any more) or reinstate it."""
    tenant = await usecases.update(
        store,
        tenant_id,
        name=body.name,
        plan=body.plan,
        status=body.status,
        version=version,
        from_tenant=who.tenant_id,
        at=now,
    )
    return TenantOut.model_validate(tenant)


@router.put("/{tenant_id}", responses=problems(NotFound, PreconditionFailed))
async def replace_tenant(
    tenant_id: UUID,
    body: TenantReplacement,
    who: IsPlatformAdmin,
    store: InTenantOfPath,
    version: SeenVersion,
    now: Now,
) -> TenantOut:
    """Set all that may be set of a tenant."""
    tenant = await usecases.update(
        store,
        tenant_id,
        name=body.name,
        plan=body.plan,
        version=version,
        from_tenant=who.tenant_id,
        at=now,
    )
    return TenantOut.model_validate(tenant)


@router.post("/{tenant_id}/suspend", responses=problems(NotFound, Conflict))
async def suspend_tenant(
    tenant_id: UUID,
    who: IsPlatformAdmin,
    store: InTenantOfPath,
    now: Now,
    body: Reason | None = None,
) -> TenantOut:
    """Let nobody and no device in any more, until the tenant is resumed. All it has stays."""
    tenant = await usecases.suspend(
        store,
        tenant_id,
        reason=body.reason if body else "",
        from_tenant=who.tenant_id,
        at=now,
    )
    return TenantOut.model_validate(tenant)


@router.post("/{tenant_id}/resume", responses=problems(NotFound))
async def resume_tenant(
    tenant_id: UUID, who: IsPlatformAdmin, store: InTenantOfPath, now: Now
) -> TenantOut:
    """Let a tenant in again that was suspended, or that is closing and not erased yet."""
    return TenantOut.model_validate(await usecases.resume(store, tenant_id, at=now))


@router.delete("/{tenant_id}", status_code=204, responses=problems(NotFound, Conflict))
async def remove_tenant(
    request: Request,
    tenant_id: UUID,
    who: IsPlatformAdmin,
    store: InTenantOfPath,
    now: Now,
    grace: Annotated[
        timedelta | None,
        Query(
            ge=timedelta(),
            le=timedelta(days=3650),
            description="How long it can be taken back, as an ISO 8601 duration."
            " Absent: TENANCY_ERASURE_GRACE. PT0S: it is erased at once, and must be suspended before.",
            examples=["P30D"],
        ),
    ] = None,
    reason: Annotated[str, Query(max_length=1000, pattern=r"^[^\x00]*$")] = "",
) -> Response:
    """Close a tenant: nobody enters, and when the grace is over it and all it has are erased.

    Until then `POST /api/v1/tenants/{tenant_id}/resume` takes it back.
    """
    await usecases.close(
        store,
        tenant_id,
        reason=reason,
        grace=request.app.state.settings.erasure_grace if grace is None else grace,
        from_tenant=who.tenant_id,
        at=now,
    )
    return Response(status_code=204)
