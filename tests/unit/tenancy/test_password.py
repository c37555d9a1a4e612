"""A new password is long, and not what others would try first."""

import pytest

from libs.common.errors import Invalid
from services.tenancy.adapters.common_passwords import common_passwords
from services.tenancy.domain.password import PasswordPolicy, normalise_password

POLICY = PasswordPolicy(15, common_passwords)
OWN = ("anna.schmidt@acme.example", "Anna Schmidt", "acme-steel", "Acme Steel")


def reason(password: str, policy: PasswordPolicy = POLICY) -> str:
    """Return why a password is refused."""
    with pytest.raises(Invalid) as refused:
        policy.check(password, own=OWN)
    assert not password or password not in str(refused.value.errors) + refused.value.detail
    [error] = refused.value.errors
    assert error.pointer == "#/password"
    return error.reason


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery staple",
        "пароль у меня длинный",
        "no capitals no digits",
        "qV7-xT2_pL9!wZ4",
        "abc" + "q" * 1021,
    ],
)
def test_a_long_password_that_nobody_guesses_is_free_otherwise(password: str) -> None:
    POLICY.check(password, own=OWN)


@pytest.mark.parametrize("password", ["", "fourteen chars", "e\u0308" * 14, "x y" * 342])
def test_a_password_too_short_or_too_long_is_refused(password: str) -> None:
    assert "characters" in reason(password)


@pytest.mark.parametrize(
    "password",
    [
        "passwordpassword",
        "PassWord-PassWord",
        "P@ssw0rd12345678",
        "!!!!dragon2026!!!!",
        "Dr4g0n-20262026",
        "iloveyou iloveyou",
        "1234567890qwerty",
        "ＰＡＳＳＷＯＲＤ１２３４５６７８",
    ],
)
def test_a_common_password_is_refused_however_it_is_dressed_up(password: str) -> None:
    assert "common" in reason(password)


@pytest.mark.parametrize(
    "password",
    ["a" * 15, "abcabcabcabcabcabc", "123456789012345", "qwertyuiopasdfgh", "- - - - - - - - -"],
)
def test_a_password_that_repeats_or_counts_is_refused(password: str) -> None:
    assert "repeat or count" in reason(password)


@pytest.mark.parametrize(
    "password",
    [
        "anna.schmidt@acme.example",
        "my name is Schmidt",
        "Schm1dt is my name",
        "we of ACME-STEEL do",
        "we melt steel at night",
    ],
)
def test_a_password_that_holds_what_its_user_is_called_is_refused(password: str) -> None:
    assert "your name" in reason(password)


def test_a_short_name_is_no_reason() -> None:
    POLICY.check("banana bread on bonfires", own=("ann@x.example", "Bo", "an"))


def test_another_length_may_be_asked_for() -> None:
    PasswordPolicy(8, common_passwords).check("wg7-xTqk")
    assert "at least 64" in reason("a" * 63, PasswordPolicy(64, common_passwords))


def test_a_password_is_what_it_spells_not_how_it_was_typed() -> None:
    assert normalise_password("Zoe\u0308") == normalise_password("Zo\u00eb")
