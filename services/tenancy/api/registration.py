"""Whom a tenant lets register themselves, and what became of its mail."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter
from pydantic import Field

from libs.common.errors import Conflict, Forbidden, Malformed, NotFound
from libs.common.http.doors import Now
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    CanReadTenants,
    CanReadUsers,
    CanWriteTenants,
    InTenantOfPath,
    InTransaction,
)
from services.tenancy.api.schemas import Email
from services.tenancy.domain.mail import MailStatus, Purpose
from services.tenancy.domain.registration import Admits, new_policy
from services.tenancy.usecases import registration as usecases

router = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])
mails = APIRouter(prefix="/api/v1/users/mails", tags=["users"])


Domains = Annotated[
    list[Annotated[str, Field(max_length=253)]], Field(max_length=100, examples=[["acme.example"]])
]
RoleName = Annotated[str, Field(max_length=64, examples=["viewer"])]


class RegistrationIn(Body):
    """Whom to let register, and the role they get."""

    admits: Admits
    domains: Domains = []  # noqa: RUF012 - pydantic copies it
    """Of addresses; exactly, without subdomains. Named if, and only if, `admits` is `domains`."""
    role: RoleName = "viewer"


class RegistrationOut(Out):
    """Whom a tenant lets register, and the role they get."""

    admits: Admits
    domains: Domains
    role: RoleName


class MailOut(Out):
    """A mail that was not sent: it waits for another attempt, or was given up."""

    id: UUID
    purpose: Purpose
    email: Email
    status: MailStatus
    attempts: int
    reason: Annotated[str | None, Field(examples=["cannot reach the mail server"])]
    """What kept the last attempt from succeeding."""
    created_at: datetime


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.get("/{tenant_id}/registration", responses=problems(NotFound))
async def get_registration(
    tenant_id: UUID, who: CanReadTenants, store: InTenantOfPath
) -> RegistrationOut:
    """Return whom the tenant lets register themselves."""
    await store.tenants.get(tenant_id)
    return RegistrationOut.model_validate(await store.registration.policy())


@router.put("/{tenant_id}/registration", responses=problems(NotFound, Conflict, Forbidden))
async def set_registration(
    tenant_id: UUID, body: RegistrationIn, who: CanWriteTenants, store: InTenantOfPath, now: Now
) -> RegistrationOut:
    """Say whom the tenant lets register themselves: nobody, anyone, or who has an address at a domain."""
    policy = new_policy(body.admits, body.domains, body.role)
    await usecases.set_policy(store, tenant_id, policy, held=who.permissions, at=now)
    return RegistrationOut.model_validate(policy)


@mails.get("", responses=problems(Malformed))
async def list_mails(
    who: CanReadUsers, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[MailOut]:
    """List the mails to the tenant's users that were not sent yet, or were given up, oldest first."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    waiting = await store.mails.page(limit + 1, after)
    more, waiting = len(waiting) > limit, waiting[:limit]
    return Page(
        items=[MailOut.model_validate(mail) for mail in waiting],
        next_cursor=encode_cursor(_Position(waiting[-1].created_at, waiting[-1].id))
        if more
        else None,
    )
