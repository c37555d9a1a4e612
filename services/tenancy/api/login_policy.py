"""What a tenant asks of those who enter it."""

from uuid import UUID

from fastapi import APIRouter

from libs.common.errors import NotFound
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import CanReadTenants, CanWriteTenants, InTenantOfPath

router = APIRouter(prefix="/api/v1/tenants", tags=["tenants"])


class LoginPolicy(Body):
    """What a tenant asks of those who enter it."""

    require_second_factor: bool
    """Nobody enters by a password alone; who has no second factor sets one up at the next login."""


class LoginPolicyOut(Out):
    """What a tenant asks of those who enter it."""

    require_second_factor: bool


@router.get("/{tenant_id}/login-policy", responses=problems(NotFound))
async def get_login_policy(
    tenant_id: UUID, who: CanReadTenants, store: InTenantOfPath
) -> LoginPolicyOut:
    """Return what the tenant asks of those who enter it."""
    await store.tenants.get(tenant_id)
    return LoginPolicyOut(require_second_factor=await store.login_policies.requires_second_factor())


@router.put("/{tenant_id}/login-policy", responses=problems(NotFound))
async def set_login_policy(
    tenant_id: UUID, body: LoginPolicy, who: CanWriteTenants, store: InTenantOfPath, now: Now
) -> LoginPolicyOut:
    """Say what the tenant asks of those who enter it, from the next login on."""
    await store.tenants.get(tenant_id, lock=True)
    await store.login_policies.set(require_second_factor=body.require_second_factor, at=now)
    return LoginPolicyOut(require_second_factor=body.require_second_factor)
