"""Why somebody of the tenant may do something, or may not."""

from datetime import datetime
from uuid import UUID

from libs.common.auth.operations import operation_at
from libs.common.auth.principal import Principal
from libs.common.auth.roles import BUILT_IN, PERMISSIONS
from libs.common.errors import Forbidden, invalid
from services.tenancy.domain.explanation import Explanation, explain_key, explain_member
from services.tenancy.store.accounts import Accounts
from services.tenancy.store.store import TenancyStore


def needs_of_permission(permission: str) -> tuple[str, ...]:
    """Return what doing something under a permission takes. Raises Invalid if there is none such."""
    if permission not in PERMISSIONS:
        raise invalid("#/permission", "there is no such permission; /api/v1/permissions lists them")
    return (permission,)


def needs_of_operation(method: str, path: str) -> tuple[str, ...]:
    """Return the permissions that a request takes. Raises Invalid if no operation answers it."""
    operation = operation_at(method, path)
    if operation is None:
        raise invalid("#/path", "no operation answers this method at this path")
    return operation.permissions


async def of_user(
    store: TenancyStore,
    accounts: Accounts,
    user_id: UUID,
    needs: tuple[str, ...],
    *,
    asked_by: Principal,
) -> Explanation:
    """Explain what a user may. Raises NotFound; Forbidden if the caller may not see users."""
    _check_may_ask(asked_by, user_id)
    member = await store.members.get(user_id)
    own = {role.name: role.permissions for role in await store.roles.named(member.roles)}
    account = await accounts.get(user_id)
    return explain_member(
        needs,
        member,
        {
            name: BUILT_IN[name].permissions if name in BUILT_IN else own.get(name, ())
            for name in member.roles
        },
        await store.tenants.get(store.tenant_id),
        is_suspended=account.is_suspended,
        # Who the platform's admins are is nothing that a tenant is told.
        is_platform_admin=user_id == asked_by.subject and asked_by.platform_admin,
    )


async def of_key(
    store: TenancyStore,
    key_id: UUID,
    needs: tuple[str, ...],
    *,
    asked_by: Principal,
    now: datetime,
) -> Explanation:
    """Explain what an API key may. Raises NotFound; Forbidden as above."""
    _check_may_ask(asked_by, key_id)
    tenant = await store.tenants.get(store.tenant_id)
    return explain_key(needs, await store.api_keys.get(key_id), tenant, now=now)


def _check_may_ask(who: Principal, about: UUID) -> None:
    if about != who.subject and not who.may("users:read"):
        raise Forbidden("about others this needs the permission users:read")
