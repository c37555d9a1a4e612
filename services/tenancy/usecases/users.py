"""What is done with the users of a tenant."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal, TypedDict
from uuid import UUID

from libs.common.auth.roles import ADMIN, BUILT_IN
from libs.common.errors import Conflict, FieldError, Invalid, NotFound, PreconditionFailed
from libs.common.events.tenancy import (
    MembershipChanged,
    MembershipRemoved,
    UserCreated,
    UserDeleted,
    UserDisabled,
    UserEnabled,
    UserUpdated,
)
from libs.common.quotas.terms import Resource
from services.tenancy.domain.account import Account
from services.tenancy.domain.invitation import Invitation
from services.tenancy.domain.mail import Purpose
from services.tenancy.domain.member import Member, MemberStatus
from services.tenancy.domain.reach import Groups, check_within
from services.tenancy.domain.role import check_may_hand_out, permissions_of
from services.tenancy.store.store import TenancyStore
from services.tenancy.usecases import usage


class _Who(TypedDict):
    tenant_id: UUID
    at: datetime
    user_id: UUID


async def invite(
    store: TenancyStore,
    new_id: UUID,
    invitation: Invitation,
    *,
    email: str,
    name: str,
    roles: Sequence[str],
    held: Iterable[str],
    within: Groups,
    at: datetime,
    device_groups: Groups = None,
) -> Member:
    """Invite someone to the tenant; a user is made, without a password, if the address is new.

    Whether it was cannot be told from what comes back. Until they accept they may do nothing here.
    `held` are the caller's permissions, `within` the device groups that the caller is limited to.
    Raises Invalid for an unknown role, Forbidden for one that may do more than the caller or for
    device groups beyond the caller's, Conflict if the address belongs to the tenant already.
    """
    await store.tenants.lock()
    check_may_hand_out(held, await permissions_of_roles(store, roles))
    check_within(within, device_groups)
    await _check_room(store)
    user_id = await store.users.add(new_id, email=email, at=at)
    member = _new_member(user_id, email, name, roles, MemberStatus.INVITED, at)
    member = replace(member, device_groups=device_groups)
    await store.members.add(member)
    await _count(store, at)
    await _send(store, member, invitation, at)
    return member


async def invite_again(
    store: TenancyStore,
    user_id: UUID,
    invitation: Invitation,
    *,
    held: Iterable[str],
    within: Groups,
    at: datetime,
) -> Member:
    """Make a new invitation for someone who has not accepted theirs, which is void.

    Raises NotFound; Forbidden if they would get more permissions, or reach further, than the caller;
    Conflict if they have joined.
    """
    await store.tenants.lock()
    member = await store.members.get(user_id)
    await _check_may_touch(store, member, held, within)
    if member.status is not MemberStatus.INVITED:
        raise Conflict(f"{member.email} has joined already")
    await _send(store, member, invitation, at)
    return member


async def invite_admin(
    store: TenancyStore,
    new_id: UUID,
    invitation: Invitation,
    *,
    email: str,
    name: str,
    at: datetime,
) -> Member:
    """Invite an administrator, or invite them again, for the platform.

    Raises NotFound if there is no such tenant, Conflict once it has an administrator: from then on
    its people decide who joins them.
    """
    await store.tenants.lock()
    if await store.members.has_administrator():
        raise Conflict("the tenant has an administrator, who invites others")
    known = await store.members.with_email(email)
    if known is not None and ADMIN in known.roles:
        return await invite_again(store, known.id, invitation, held=["*"], within=None, at=at)
    return await invite(
        store,
        new_id,
        invitation,
        email=email,
        name=name,
        roles=[ADMIN],
        held=["*"],
        within=None,
        at=at,
    )


async def join(
    store: TenancyStore,
    user_id: UUID,
    *,
    email: str,
    name: str,
    roles: Sequence[str],
    at: datetime,
) -> Member:
    """Make a user who exists a member of the tenant. Raises Conflict if they are one, or there is no room."""
    await store.tenants.lock()
    await _check_room(store)
    member = _new_member(user_id, email, name, roles, MemberStatus.ACTIVE, at)
    await store.members.add(member)
    await _count(store, at)
    say_joined(store, member, at)
    return member


async def activate(store: TenancyStore, member: Member, *, at: datetime) -> None:
    """Let someone who was invited enter the tenant."""
    member = replace(member, status=MemberStatus.ACTIVE, updated_at=at, version=member.version + 1)
    await store.members.update(member)
    say_joined(store, member, at)


def say_joined(store: TenancyStore, member: Member, at: datetime) -> None:
    """Say that someone may enter the tenant from now on, and what as."""
    who = _Who(tenant_id=store.tenant_id, at=at, user_id=member.id)
    store.emit(UserCreated(**who, email=member.email, name=member.name))
    store.emit(MembershipChanged(**who, roles=member.roles))


async def rename(store: TenancyStore, user_id: UUID, *, name: str, at: datetime) -> None:
    """Let a user be called as they wish, in this tenant. Raises NotFound if they may not enter it."""
    await store.tenants.lock()
    before = await store.members.get(user_id)
    if before.status is not MemberStatus.ACTIVE:
        raise NotFound(f"no user {user_id}")
    after = replace(before, name=name, updated_at=at, version=before.version + 1)
    await store.members.update(after)
    _say_what_changed(store, before, after, at)


async def update(
    store: TenancyStore,
    user_id: UUID,
    *,
    name: str | None,
    roles: Sequence[str] | None,
    status: MemberStatus | None,
    version: int | None,
    held: Iterable[str],
    within: Groups,
    at: datetime,
    device_groups: Groups | Literal["as before"] = "as before",
) -> Member:
    """Change what is given of a member, in this tenant alone.

    Raises NotFound; PreconditionFailed if `version` is given and is no longer theirs; Invalid for an
    unknown role; Forbidden if they have, or would get, more permissions than the caller, or reach
    further; Conflict if nobody would be left to administer all of the tenant, and for roles, status
    and device groups of someone who has not accepted the invitation: whoever holds that would get
    what its maker could not give.
    """
    await store.tenants.lock()
    before = await store.members.get(user_id)
    if version is not None and version != before.version:
        raise PreconditionFailed(f"the user is at version {before.version}, not {version}")
    after = replace(
        before,
        name=before.name if name is None else name,
        roles=before.roles if roles is None else tuple(sorted(set(roles))),
        status=before.status if status is None else status,
        device_groups=before.device_groups if device_groups == "as before" else device_groups,
        updated_at=at,
        version=before.version + 1,
    )
    # What they have counts as well: nobody changes someone who may do more than themselves.
    await _check_may_touch(store, before, held, within)
    check_within(within, after.device_groups)
    if after.roles != before.roles:
        check_may_hand_out(held, await permissions_of_roles(store, after.roles))
    if before.status is MemberStatus.INVITED and (
        roles is not None or status is not None or device_groups != "as before"
    ):
        raise Conflict("the invitation is not accepted yet: remove the user, and invite them anew")
    await _check_admin_remains(store, before, after)
    await store.members.update(after)
    _say_what_changed(store, before, after, at)
    return after


async def assign(
    store: TenancyStore,
    user_id: UUID,
    roles: Sequence[str],
    *,
    held: Iterable[str],
    within: Groups,
    at: datetime,
) -> Member:
    """Give a member roles besides those they have. Raises as `update` does."""
    await store.tenants.lock()
    member = await store.members.get(user_id)
    wanted = {*member.roles, *roles}
    if wanted == {*member.roles}:
        return member
    return await _have_roles(store, member, wanted, held, within, at)


async def unassign(
    store: TenancyStore,
    user_id: UUID,
    role: str,
    *,
    held: Iterable[str],
    within: Groups,
    at: datetime,
) -> Member:
    """Take a role from a member.

    Raises NotFound if they have it not, Conflict if they have no other; else as `update` does.
    """
    await store.tenants.lock()
    member = await store.members.get(user_id)
    if role not in member.roles:
        raise NotFound(f"the user has no role {role!r}")
    left = {*member.roles} - {role}
    if not left:
        raise Conflict("it is the user's only role: give them another first, or remove them")
    return await _have_roles(store, member, left, held, within, at)


async def remove(
    store: TenancyStore, user_id: UUID, *, held: Iterable[str], within: Groups, at: datetime
) -> None:
    """End a user's membership, or void their invitation; who belongs to no tenant is forgotten.

    Raises NotFound; Forbidden if they may do more than the caller, or reach further; Conflict if
    nobody would be left to administer all of the tenant.
    """
    await store.tenants.lock()
    member = await store.members.get(user_id)
    await _check_may_touch(store, member, held, within)
    await _check_admin_remains(store, member, None)
    await store.members.remove(user_id)
    await _count(store, at)
    await store.users.forget([user_id])
    if member.status is MemberStatus.INVITED:
        return  # nobody heard of them
    who = _Who(tenant_id=store.tenant_id, at=at, user_id=user_id)
    store.emit(MembershipRemoved(**who))
    store.emit(UserDeleted(**who))


async def suspend(store: TenancyStore, account: Account, *, at: datetime) -> None:
    """Bar a user from every tenant of the installation. Raises Conflict if they are barred."""
    if not await store.users.bar(account.user_id, at):
        raise Conflict("the user is suspended already")
    for membership in account.memberships:
        if membership.status is MemberStatus.INVITED:
            continue  # nobody there has heard of them
        store.emit(UserDisabled(tenant_id=membership.tenant_id, at=at, user_id=account.user_id))


async def reinstate(store: TenancyStore, account: Account, *, at: datetime) -> None:
    """Let a suspended user in again where they are a member. Raises Conflict if they are not barred."""
    if not await store.users.bar(account.user_id, None):
        raise Conflict("the user is not suspended")
    for membership in account.memberships:
        if membership.status is MemberStatus.ACTIVE:
            store.emit(UserEnabled(tenant_id=membership.tenant_id, at=at, user_id=account.user_id))


async def _check_room(store: TenancyStore) -> None:
    """Raise QuotaExceeded if the tenant has as many users as it may. Lock the tenant before."""
    await store.quotas.check(Resource.USERS, await store.members.count() + 1)


async def _count(store: TenancyStore, at: datetime) -> None:
    await usage.count_own(store, Resource.USERS, await store.members.count(), at=at)


async def _have_roles(
    store: TenancyStore,
    member: Member,
    roles: Iterable[str],
    held: Iterable[str],
    within: Groups,
    at: datetime,
) -> Member:
    return await update(
        store,
        member.id,
        name=None,
        roles=sorted(roles),
        status=None,
        version=None,
        held=held,
        within=within,
        at=at,
    )


def _say_what_changed(store: TenancyStore, before: Member, after: Member, at: datetime) -> None:
    if after.status is MemberStatus.INVITED:
        return  # nobody has heard of them yet
    who = _Who(tenant_id=store.tenant_id, at=at, user_id=after.id)
    if after.name != before.name:
        store.emit(UserUpdated(**who, email=after.email, name=after.name))
    if after.roles != before.roles or after.device_groups != before.device_groups:
        store.emit(MembershipChanged(**who, roles=after.roles))
    if after.status is not before.status:
        disabled = after.status is MemberStatus.DISABLED
        store.emit(UserDisabled(**who) if disabled else UserEnabled(**who))


async def _check_may_touch(
    store: TenancyStore, member: Member, held: Iterable[str], within: Groups
) -> None:
    check_within(within, member.device_groups)
    own = {role.name: role.permissions for role in await store.roles.named(member.roles)}
    check_may_hand_out(held, permissions_of(member.roles, own))


async def _check_admin_remains(store: TenancyStore, before: Member, after: Member | None) -> None:
    stays = after is not None and after.is_administrator
    if (
        before.is_administrator
        and not stays
        and not await store.members.has_administrator(besides=before.id)
    ):
        raise Conflict("this is the tenant's last administrator")


def _new_member(
    user_id: UUID,
    email: str,
    name: str,
    roles: Sequence[str],
    status: MemberStatus,
    at: datetime,
) -> Member:
    return Member(
        id=user_id,
        email=email,
        name=name,
        roles=tuple(sorted(set(roles))),
        status=status,
        created_at=at,
        updated_at=at,
        version=1,
    )


async def _send(store: TenancyStore, member: Member, invitation: Invitation, at: datetime) -> None:
    await store.invitations.keep(member.id, invitation)
    await store.mails.post(Purpose.INVITATION, member.email, about=member.id, at=at)


async def permissions_of_roles(
    store: TenancyStore, roles: Sequence[str], pointer: str | None = None
) -> tuple[str, ...]:
    """Return what the roles permit together. Raises Invalid, at `pointer` or in `#/roles`, for unknown ones."""
    own = {role.name: role.permissions for role in await store.roles.named(roles)}
    unknown = [
        FieldError(pointer or f"#/roles/{position}", "there is no such role")
        for position, name in enumerate(roles)
        if name not in BUILT_IN and name not in own
    ]
    if unknown:
        raise Invalid("A role is not known; /api/v1/roles lists them.", errors=unknown)
    return permissions_of(roles, own)
