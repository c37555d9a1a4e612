"""Tenants: opened and closed by the platform's admins, seen by their own users."""

from datetime import datetime
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Response
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


class TenantChange(Body):
    """What is to change of a tenant; what is left out stays."""

    name: Name | None = None
    status: TenantStatus | None = None


class TenantOut(Out):
    """A tenant."""

    id: UUID
    slug: str
    name: str
    status: TenantStatus
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


@router.post("", status_code=201, responses=problems(Conflict))
async def create_tenant(
    body: TenantIn,
    who: IsPlatformAdmin,
    store: InNewTenant,
    invitation: NewInvitation,
    now: Now,
) -> NewTenantOut:
    """Open a tenant, and invite its first administrator if one is given."""
    tenant = await usecases.create(store, slug=body.slug, name=body.name, at=now)
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
    """Rename a tenant, suspend it (nobody enters any more) or reinstate it."""
    tenant = await usecases.update(
        store,
        tenant_id,
        name=body.name,
        status=body.status,
        version=version,
        from_tenant=who.tenant_id,
        at=now,
    )
    return TenantOut.model_validate(tenant)


@router.delete("/{tenant_id}", status_code=204, responses=problems(NotFound, Conflict))
async def remove_tenant(
    tenant_id: UUID, who: IsPlatformAdmin, store: InTenantOfPath, now: Now
) -> Response:
    """Remove a suspended tenant and, with time, all it has. This cannot be undone."""
    await usecases.remove(store, tenant_id, at=now)
    return Response(status_code=204)
