"""What is done with a tenant's own roles."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from libs.common.auth.roles import BUILT_IN
from libs.common.errors import Conflict
from libs.common.events.tenancy import RoleChanged, RoleDeleted
from services.tenancy.domain.role import Role, check_may_hand_out, check_role
from services.tenancy.store.store import TenancyStore


async def create(store: TenancyStore, role: Role, *, held: Iterable[str], at: datetime) -> None:
    """Add a role to the tenant.

    Raises Invalid for a name or a permission that cannot be, Forbidden if it may do more than the
    caller, Conflict if there is one of that name.
    """
    check_role(role)
    check_may_hand_out(held, role.permissions)
    await store.roles.add(role, at)
    _say(store, role, at)


async def change(store: TenancyStore, role: Role, *, held: Iterable[str], at: datetime) -> None:
    """Let a role permit something else, for all who have it.

    Raises NotFound, Invalid and Forbidden as above, Conflict for a built-in role.
    """
    _refuse_built_in(role.name)
    permissions = tuple(held)
    before = await store.roles.get(role.name)
    check_role(role)
    check_may_hand_out(permissions, (*before.permissions, *role.permissions))
    await store.roles.update(role, at)
    _say(store, role, at)


async def amend(
    store: TenancyStore,
    name: str,
    *,
    description: str | None,
    permissions: tuple[str, ...] | None,
    held: Iterable[str],
    at: datetime,
) -> Role:
    """Change what is given of a role. Raises as `change` does."""
    _refuse_built_in(name)
    role = await store.roles.get(name)
    if description is not None:
        role = replace(role, description=description)
    if permissions is not None:
        role = replace(role, permissions=permissions)
    await change(store, role, held=held, at=at)
    return role


async def remove(store: TenancyStore, name: str, *, held: Iterable[str], at: datetime) -> None:
    """Remove a role. Raises NotFound, Forbidden as above, Conflict for one that someone has."""
    _refuse_built_in(name)
    role = await store.roles.get(name)
    check_may_hand_out(held, role.permissions)
    await store.tenants.lock()
    if await store.members.has_role(name):
        raise Conflict(f"there are users with the role {name!r}")
    await store.roles.remove(name)
    store.emit(RoleDeleted(tenant_id=store.tenant_id, at=at, name=name))


def _refuse_built_in(name: str) -> None:
    if name in BUILT_IN:
        raise Conflict(f"{name!r} is a built-in role, the same in every tenant")


def _say(store: TenancyStore, role: Role, at: datetime) -> None:
    store.emit(
        RoleChanged(tenant_id=store.tenant_id, at=at, name=role.name, permissions=role.permissions)
    )
