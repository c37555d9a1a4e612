"""What people type: names of roles."""

import pytest

from libs.common.errors import Invalid
from services.tenancy.domain.role import Role, check_role


@pytest.mark.parametrize("name", ["admin", "viewer", "", "Night", "night shift", "-a", "a_", "a\n"])
def test_a_tenants_role_has_a_name_of_its_own(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_role(Role(name, "", ("alerts:read",), is_built_in=False))
    assert [error.pointer for error in refused.value.errors] == ["#/name"]


def test_every_unknown_permission_is_named() -> None:
    role = Role("ok", "", ("alerts:read", "x", "*:explode"), is_built_in=False)
    with pytest.raises(Invalid) as refused:
        check_role(role)
    pointers = [error.pointer for error in refused.value.errors]
    assert pointers == ["#/permissions/1", "#/permissions/2"]
