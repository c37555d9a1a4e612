"""Users, as the members of the caller's tenant."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Path, Query, Response

from libs.common.email import normalise_email
from libs.common.errors import Conflict, Forbidden, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body
from services.tenancy.api.deps import (
    AllAccounts,
    AllFactors,
    CanReadUsers,
    CanWriteUsers,
    InTransaction,
    IsPlatformAdmin,
    NewInvitation,
    SeenVersion,
)
from services.tenancy.api.schemas import (
    DeviceGroups,
    Email,
    InvitedUserOut,
    Name,
    RoleNames,
    UserOut,
    invited_out,
)
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.reach import Groups
from services.tenancy.usecases import users as usecases

router = APIRouter(prefix="/api/v1/users", tags=["users"], route_class=IdempotentRoute)


class UserIn(Body):
    """Someone who is invited to join the tenant."""

    email: Email
    name: Name
    roles: RoleNames
    device_groups: DeviceGroups = None


class UserChange(Body):
    """What is to change of a user in this tenant; what is left out stays."""

    name: Name | None = None
    roles: RoleNames | None = None
    status: Literal[MemberStatus.ACTIVE, MemberStatus.DISABLED] | None = None
    device_groups: DeviceGroups = None


class UserReplacement(Body):
    """All that a tenant says of a user. Device groups that are left out stay: they are a limit."""

    name: Name
    roles: RoleNames
    status: Literal[MemberStatus.ACTIVE, MemberStatus.DISABLED]
    device_groups: DeviceGroups = None


class Assignment(Body):
    """Roles to give, besides those the user has."""

    roles: RoleNames


def _groups(body: UserChange | UserReplacement) -> Groups | Literal["as before"]:
    if "device_groups" not in body.model_fields_set:
        return "as before"
    return None if body.device_groups is None else frozenset(body.device_groups)


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict, Forbidden))
async def invite_user(
    body: UserIn, who: CanWriteUsers, store: InTransaction, invitation: NewInvitation, now: Now
) -> InvitedUserOut:
    """Invite someone to the tenant. The answer is the same whether or not the address was known."""
    member = await usecases.invite(
        store,
        uuid4(),
        invitation,
        email=normalise_email(body.email),
        name=body.name,
        roles=body.roles,
        device_groups=None if body.device_groups is None else frozenset(body.device_groups),
        held=who.permissions,
        within=who.groups,
        at=now,
    )
    return invited_out(member, invitation)


@router.post(
    "/{user_id}/invitation",
    status_code=201,
    responses=problems(NotFound, Conflict, Forbidden),
)
async def invite_user_again(
    user_id: UUID, who: CanWriteUsers, store: InTransaction, invitation: NewInvitation, now: Now
) -> InvitedUserOut:
    """Make a new invitation for someone who has not accepted theirs; the old one is void."""
    member = await usecases.invite_again(
        store, user_id, invitation, held=who.permissions, within=who.groups, at=now
    )
    return invited_out(member, invitation)


@router.get("", responses=problems(Malformed))
async def list_users(
    who: CanReadUsers,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    q: Annotated[
        str | None, Query(max_length=128, description="A part of the name or the address.")
    ] = None,
    role: Annotated[str | None, Query(max_length=64, description="Who has this role.")] = None,
    status: MemberStatus | None = None,
) -> Page[UserOut]:
    """List the tenant's users, in the order they were invited: all, or those that are asked for."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    members = await store.members.page(limit + 1, after, text=q, role=role, status=status)
    more, members = len(members) > limit, members[:limit]
    return Page(
        items=[UserOut.model_validate(member) for member in members],
        next_cursor=encode_cursor(_Position(members[-1].created_at, members[-1].id))
        if more
        else None,
    )


@router.get("/{user_id}", responses=problems(NotFound))
async def get_user(user_id: UUID, who: CanReadUsers, store: InTransaction) -> UserOut:
    """Return one of the tenant's users."""
    return UserOut.model_validate(await store.members.get(user_id))


@router.patch("/{user_id}", responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed))
async def change_user(
    user_id: UUID,
    body: UserChange,
    who: CanWriteUsers,
    store: InTransaction,
    version: SeenVersion,
    now: Now,
) -> UserOut:
    """Change a user's name, roles or devices in this tenant, or whether they may enter it."""
    member = await usecases.update(
        store,
        user_id,
        name=body.name,
        roles=body.roles,
        status=body.status,
        device_groups=_groups(body),
        version=version,
        held=who.permissions,
        within=who.groups,
        at=now,
    )
    return UserOut.model_validate(member)


@router.put("/{user_id}", responses=problems(NotFound, Conflict, Forbidden, PreconditionFailed))
async def replace_user(
    user_id: UUID,
    body: UserReplacement,
    who: CanWriteUsers,
    store: InTransaction,
    version: SeenVersion,
    now: Now,
) -> UserOut:
    """Say anew all that this tenant says of a user: name, roles, and whether they may enter."""
    member = await usecases.update(
        store,
        user_id,
        name=body.name,
        roles=body.roles,
        status=body.status,
        device_groups=_groups(body),
        version=version,
        held=who.permissions,
        within=who.groups,
        at=now,
    )
    return UserOut.model_validate(member)


@router.post("/{user_id}/roles", responses=problems(NotFound, Conflict, Forbidden))
async def assign_roles(
    user_id: UUID, body: Assignment, who: CanWriteUsers, store: InTransaction, now: Now
) -> UserOut:
    """Give a user roles besides those they have."""
    member = await usecases.assign(
        store, user_id, body.roles, held=who.permissions, within=who.groups, at=now
    )
    return UserOut.model_validate(member)


@router.delete(
    "/{user_id}/roles/{role}", status_code=204, responses=problems(NotFound, Conflict, Forbidden)
)
async def unassign_role(
    user_id: UUID,
    role: Annotated[str, Path(max_length=64)],
    who: CanWriteUsers,
    store: InTransaction,
    now: Now,
) -> Response:
    """Take a role from a user, who keeps one at least."""
    await usecases.unassign(store, user_id, role, held=who.permissions, within=who.groups, at=now)
    return Response(status_code=204)


@router.delete("/{user_id}", status_code=204, responses=problems(NotFound, Conflict, Forbidden))
async def remove_user(
    user_id: UUID, who: CanWriteUsers, store: InTransaction, now: Now
) -> Response:
    """Let a user leave the tenant, or void their invitation; who belongs to no other is forgotten."""
    await usecases.remove(store, user_id, held=who.permissions, within=who.groups, at=now)
    return Response(status_code=204)


@router.post("/{user_id}/suspend", status_code=204, responses=problems(NotFound, Conflict))
async def suspend_user(
    user_id: UUID, who: IsPlatformAdmin, accounts: AllAccounts, store: InTransaction, now: Now
) -> Response:
    """Bar a user from the whole installation."""
    if user_id == who.subject:
        raise Conflict("this would shut you out yourself")
    await usecases.suspend(store, await accounts.get(user_id), at=now)
    return Response(status_code=204)


@router.post("/{user_id}/reinstate", status_code=204, responses=problems(NotFound, Conflict))
async def reinstate_user(
    user_id: UUID, who: IsPlatformAdmin, accounts: AllAccounts, store: InTransaction, now: Now
) -> Response:
    """Let a suspended user in again."""
    await usecases.reinstate(store, await accounts.get(user_id), at=now)
    return Response(status_code=204)


@router.delete("/{user_id}/factors", status_code=204, responses=problems(NotFound))
async def reset_factors(
    user_id: UUID, who: IsPlatformAdmin, factors: AllFactors, now: Now
) -> Response:
    """Take away all second factors of a user who has lost them; they enrol anew where one is asked for."""
    await factors.reset(user_id, now=now)
    return Response(status_code=204)
