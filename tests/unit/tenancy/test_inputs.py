"""What people type: passwords, names of roles."""

import pytest

from libs.common.errors import Invalid
from services.tenancy.domain.password import check_new_password, normalise_password
from services.tenancy.domain.role import Role, check_role


@pytest.mark.parametrize("password", ["aaaaaaaaaaaa", "            ", "пароль-пароль", "a" * 1024])
def test_a_password_is_long_enough_and_otherwise_free(password: str) -> None:
    check_new_password(password)


@pytest.mark.parametrize("password", ["", "eleven char", "a" * 1025])
def test_a_password_too_short_or_too_long_is_refused_without_being_told(password: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_new_password(password)
    assert not password or password not in refused.value.detail


def test_a_password_is_what_it_spells_not_how_it_was_typed() -> None:
    assert normalise_password("Zoe\u0308") == normalise_password("Zo\u00eb")


def test_letters_that_fold_together_do_not_make_a_password_long() -> None:
    with pytest.raises(Invalid):
        check_new_password("e\u0308" * 11)


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
