"""Tenants: opened and closed by the platform's admins, seen by their own users."""

from datetime import datetime
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Response
from pydantic import Field

from libs.common.auth.roles import ADMIN
from libs.common.errors import Conflict, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    AllAccounts,
    CanReadTenants,
    InNewTenant,
    InTenantOfPath,
    IsPlatformAdmin,
    PasswordHashing,
    SeenVersion,
)
from services.tenancy.api.schemas import Email, Name, NewPassword
from services.tenancy.domain.email import normalise_email
from services.tenancy.domain.password import check_new_password
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.usecases import tenants as usecases
from services.tenancy.usecases import users

router = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])


class FirstAdmin(Body):
    """Who is to administer a new tenant."""

    email: Email
    name: Name
    password: NewPassword | None = None


class TenantIn(Body):
    """A tenant to open."""

    slug: Annotated[str, Field(max_length=63, examples=["acme-steel"])]
    name: Name
    admin: FirstAdmin | None = None
    """Without one, nobody can enter yet."""


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


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict))
async def create_tenant(
    body: TenantIn,
    who: IsPlatformAdmin,
    store: InNewTenant,
    passwords: PasswordHashing,
    now: Now,
) -> TenantOut:
    """Open a tenant, with its first administrator if one is given."""
    password_hash = None
    email = normalise_email(body.admin.email, "#/admin/email") if body.admin else ""
    if body.admin and body.admin.password:
        password = body.admin.password.get_secret_value()
        check_new_password(password, "#/admin/password")
        # Before the transaction has a connection: hashing is slow.
        password_hash = await passwords.hash(password)
    tenant = await usecases.create(store, slug=body.slug, name=body.name, at=now)
    if body.admin:
        await users.add(
            store,
            uuid4(),
            email=email,
            name=body.admin.name,
            roles=[ADMIN],
            password_hash=password_hash,
            held=["*"],
            at=now,
        )
    return TenantOut.model_validate(tenant)


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
