"""Why somebody may do something, or may not."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from uuid import UUID, uuid4

import pytest

from libs.common.auth.operations import operation_at
from services.tenancy.domain.api_key import ApiKey
from services.tenancy.domain.explanation import Explanation, Ground, explain_key, explain_member
from services.tenancy.domain.member import Member, MemberStatus
from services.tenancy.domain.tenant import Tenant, TenantStatus

NOW = datetime(2026, 11, 22, tzinfo=UTC)
ROLES = {"viewer": ("alerts:read",), "night-shift": ("alerts:*",)}


def tenant(status: TenantStatus = TenantStatus.ACTIVE) -> Tenant:
    return Tenant(UUID(int=1), "works", "Works", status, NOW, NOW, 1)


def ann(status: MemberStatus = MemberStatus.ACTIVE) -> Member:
    return Member(
        id=UUID(int=2),
        email="ann@plant.example",
        name="Ann",
        roles=tuple(ROLES),
        status=status,
        created_at=NOW,
        updated_at=NOW,
        version=1,
    )


def key(**more: object) -> ApiKey:
    fields: dict[str, object] = {
        "id": uuid4(),
        "name": "export",
        "handle": "iiotk_abcdefgh",
        "scopes": ("*:read",),
        "allowed_networks": (),
        "device_groups": None,
        "expires_at": None,
        "overlap_until": None,
        "created_by": uuid4(),
        "created_at": NOW,
        "updated_at": NOW,
        "version": 1,
        **more,
    }
    return ApiKey(**fields)  # type: ignore[arg-type]  # as the tests give them


def explained(
    *needs: str,
    of: Tenant | None = None,
    member: Member | None = None,
    suspended: bool = False,
    admin: bool = False,
) -> Explanation:
    return explain_member(
        needs,
        member or ann(),
        ROLES,
        of or tenant(),
        is_suspended=suspended,
        is_platform_admin=admin,
    )


def test_every_role_and_pattern_that_gives_a_permission_is_named() -> None:
    found = explained("alerts:read")
    assert found.allowed
    assert found.grounds == (
        Ground("alerts:read", "alerts:read", "viewer"),
        Ground("alerts:read", "alerts:*", "night-shift"),
    )


def test_what_nothing_gives_is_missing() -> None:
    found = explained("alerts:resolve", "users:read")
    assert not found.allowed
    assert found.missing == ("users:read",)
    assert [ground.permission for ground in found.grounds] == ["alerts:resolve"]


@pytest.mark.parametrize(
    ("found", "hindrance"),
    [
        (explained("alerts:read", member=ann(MemberStatus.INVITED)), "invitation"),
        (explained("alerts:read", member=ann(MemberStatus.DISABLED)), "disabled"),
        (explained("alerts:read", suspended=True), "suspended"),
        (explained("alerts:read", of=tenant(TenantStatus.SUSPENDED)), "the tenant is suspended"),
        (explained("platform:admin"), "platform's own"),
        (explained("device:itself"), "device"),
    ],
)
def test_what_stands_against_it_does_so_whatever_roles_give(
    found: Explanation, hindrance: str
) -> None:
    assert not found.allowed
    assert hindrance in found.hindrances[0]
    assert not found.missing


def test_what_takes_no_role_is_given() -> None:
    assert explained().allowed
    assert explained("session:own").allowed
    assert explained("tenant:member").allowed
    assert explained("platform:admin", admin=True).allowed


def test_of_a_key_its_scopes_give_and_its_limits_are_told() -> None:
    group = uuid4()
    found = explain_key(
        ["devices:read"],
        key(
            allowed_networks=(ip_network("192.0.2.0/24"),),
            device_groups=frozenset({group}),
            expires_at=NOW + timedelta(days=1),
        ),
        tenant(),
        now=NOW,
    )
    assert found.allowed
    assert found.grounds == (Ground("devices:read", "*:read", None),)
    told = " ".join(found.limits)
    assert all(word in told for word in ("192.0.2.0/24", str(group), "2026-11-23"))
    assert explain_key(["devices:write"], key(), tenant(), now=NOW).missing == ("devices:write",)
    over = explain_key(["devices:read"], key(expires_at=NOW), tenant(), now=NOW)
    assert (over.allowed, "expired" in over.hindrances[0]) == (False, True)
    assert not explain_key(["session:own"], key(), tenant(), now=NOW).allowed


def test_an_operation_is_found_by_its_own_path_and_by_its_template() -> None:
    for path in ("/api/v1/devices/{device_id}", f"/api/v1/devices/{uuid4()}"):
        found = operation_at("delete", path)
        assert found is not None
        assert found.permissions == ("devices:write",)
    # What is written out goes before what stands for anything.
    written_out = operation_at("PUT", "/api/v1/devices/policy")
    assert written_out is not None
    assert written_out.path == "/api/v1/devices/policy"
    assert operation_at("POST", "/api/v1/nothing") is None
    assert operation_at("DELETE", "/api/v1/devices/") is None
