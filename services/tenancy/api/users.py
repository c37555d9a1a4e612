"""Users, as the members of the caller's tenant."""

from datetime import datetime
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Response

from libs.common.errors import Conflict, Forbidden, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import (
    AllAccounts,
    CanReadUsers,
    CanWriteUsers,
    InTransaction,
    IsPlatformAdmin,
    PasswordHashing,
    SeenVersion,
)
from services.tenancy.api.schemas import Email, Name, NewPassword, RoleNames
from services.tenancy.domain.email import normalise_email
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.password import check_new_password
from services.tenancy.usecases import users as usecases

router = APIRouter(prefix="/api/v1/users", tags=["users"])


class UserIn(Body):
    """Someone who is to join the tenant."""

    email: Email
    name: Name
    roles: RoleNames
    password: NewPassword | None = None
    """For someone new to the installation; who is known keeps the one they have."""


class UserChange(Body):
    """What is to change of a user in this tenant; what is left out stays."""

    name: Name | None = None
    roles: RoleNames | None = None
    status: MemberStatus | None = None


class UserOut(Out):
    """A user, as this tenant knows them."""

    id: UUID
    email: str
    name: str
    roles: list[str]
    status: MemberStatus
    created_at: datetime
    """When they joined this tenant."""
    updated_at: datetime
    version: int


class _Position(msgspec.Struct):
    created_at: datetime
    id: UUID


@router.post("", status_code=201, responses=problems(Conflict, Forbidden))
async def add_user(
    body: UserIn,
    who: CanWriteUsers,
    store: InTransaction,
    passwords: PasswordHashing,
    now: Now,
) -> UserOut:
    """Let someone join the tenant. The answer is the same whether or not the address was known."""
    email = normalise_email(body.email)
    password_hash = None
    if body.password:
        check_new_password(body.password.get_secret_value())
        # Before the transaction has a connection: hashing is slow. And always, so that the time
        # taken does not tell whether the address was known.
        password_hash = await passwords.hash(body.password.get_secret_value())
    member = await usecases.add(
        store,
        uuid4(),
        email=email,
        name=body.name,
        roles=body.roles,
        password_hash=password_hash,
        held=who.permissions,
        at=now,
    )
    return UserOut.model_validate(member)


@router.get("", responses=problems(Malformed))
async def list_users(
    who: CanReadUsers, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[UserOut]:
    """List the tenant's users, in the order they joined."""
    position = decode_cursor(cursor, _Position) if cursor else None
    after = (position.created_at, position.id) if position else None
    members = await store.members.page(limit + 1, after)
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
    """Change a user's name or roles in this tenant, or whether they may enter it."""
    member = await usecases.update(
        store,
        user_id,
        name=body.name,
        roles=body.roles,
        status=body.status,
        version=version,
        held=who.permissions,
        at=now,
    )
    return UserOut.model_validate(member)


@router.delete("/{user_id}", status_code=204, responses=problems(NotFound, Conflict, Forbidden))
async def remove_user(
    user_id: UUID, who: CanWriteUsers, store: InTransaction, now: Now
) -> Response:
    """Let a user leave the tenant; who belongs to no other is forgotten."""
    await usecases.remove(store, user_id, held=who.permissions, at=now)
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
