"""Who may log in, and what they may do where."""

from uuid import UUID

import pytest

from services.tenancy.domain.account import Account, Membership
from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.tenant import TenantStatus


def a_membership(
    *,
    tenant: TenantStatus = TenantStatus.ACTIVE,
    status: MemberStatus = MemberStatus.ACTIVE,
    roles: tuple[str, ...] = ("viewer",),
    own_roles: dict[str, tuple[str, ...]] | None = None,
) -> Membership:
    return Membership(
        UUID(int=1), "acme", "Acme", tenant, "standard", "Ann", status, roles, own_roles or {}
    )


def an_account(*memberships: Membership, suspended: bool = False) -> Account:
    return Account(
        user_id=UUID(int=2),
        email="ann@acme.example",
        is_platform_admin=False,
        is_verified=True,
        is_suspended=suspended,
        memberships=memberships,
    )


def test_a_member_of_an_active_tenant_may_log_in() -> None:
    assert an_account(a_membership()).may_log_in


@pytest.mark.parametrize(
    "account",
    [
        an_account(),
        an_account(a_membership(), suspended=True),
        an_account(a_membership(status=MemberStatus.DISABLED)),
        an_account(a_membership(status=MemberStatus.INVITED)),
        an_account(a_membership(tenant=TenantStatus.SUSPENDED)),
    ],
)
def test_who_may_enter_nowhere_does_not_log_in(account: Account) -> None:
    assert not account.may_log_in


@pytest.mark.parametrize("status", [MemberStatus.DISABLED, MemberStatus.INVITED])
def test_only_the_tenants_that_are_open_are_offered(status: MemberStatus) -> None:
    closed, opened = a_membership(status=status), a_membership()
    assert an_account(closed, opened).open_memberships == (opened,)


def test_permissions_are_those_of_all_roles_together() -> None:
    membership = a_membership(
        roles=("auditor", "night-shift"), own_roles={"night-shift": ("alerts:*",)}
    )
    assert membership.permissions == ("*:read", "alerts:*")


def test_a_role_that_is_no_more_permits_nothing() -> None:
    assert a_membership(roles=("night-shift",)).permissions == ()


def test_a_tenant_cannot_redefine_a_built_in_role() -> None:
    membership = a_membership(roles=("auditor",), own_roles={"auditor": ("*",)})
    assert membership.permissions == ("*:read",)
