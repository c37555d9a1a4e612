"""People prove their password to the plant's own directory: a real slapd, always under TLS."""

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from libs.common.destinations import Destinations
from libs.common.errors import Unauthenticated, Unavailable
from services.tenancy.adapters.ldap import Directories
from services.tenancy.domain.identity_provider import LdapSettings
from tests.directory import BASE, SEARCHER, SEARCHER_PASSWORD, Directory

LOOPBACK = Destinations([IPv4Network("127.0.0.0/8")])
WRONG = "the email address or the password is wrong"


@pytest.fixture
def settings(directory: Directory) -> LdapSettings:
    return LdapSettings(
        url=directory.tls_url,
        base_dn=BASE,
        bind_dn=SEARCHER,
        user_filter="(|(uid={login})(mail={login}))",
        ca=directory.ca,
    )


@pytest.fixture
async def directories() -> AsyncIterator[Directories]:
    asked = Directories(LOOPBACK)
    yield asked
    asked.close()


async def test_ann_is_known_by_her_password_with_her_groups(
    directories: Directories, settings: LdapSettings, directory: Directory
) -> None:
    for login in ("ann", "ann@plant.example"):
        ann = await directories.prove(settings, SEARCHER_PASSWORD, login, "ann turns the wheel")
        assert (ann.email, ann.name) == ("ann@plant.example", "Ann Weller")
        assert "Shift Leads" in ann.groups
        assert f"cn=Shift Leads,ou=groups,{BASE}" in ann.groups
        assert "Office" not in ann.groups
        assert ann.subject
    upgraded = replace(settings, url=directory.url)
    again = await directories.prove(upgraded, SEARCHER_PASSWORD, "ann", "ann turns the wheel")
    assert again == ann


@pytest.mark.parametrize(
    ("login", "password"),
    [
        ("ann", "not hers"),
        ("ann", ""),  # which directories take as a bind of nobody, and say it succeeded
        ("ann", "ann turns the wheel\0"),
        ("nobody", "ann turns the wheel"),
        ("*", "ann turns the wheel"),
        ("ann)(uid=*", "ann turns the wheel"),
        ("*)(|(uid=ann", "ann turns the wheel"),
        ("", "ann turns the wheel"),
    ],
)
async def test_whoever_does_not_prove_it_is_refused_in_equal_words(
    directories: Directories, settings: LdapSettings, login: str, password: str
) -> None:
    with pytest.raises(Unauthenticated, match=WRONG):
        await directories.prove(settings, SEARCHER_PASSWORD, login, password)


async def test_a_login_that_fits_two_people_is_nobody_s(
    directories: Directories, settings: LdapSettings
) -> None:
    both = replace(settings, user_filter="(|(uid={login})(uid=bob))")
    with pytest.raises(Unavailable, match="several users"):
        await directories.prove(both, SEARCHER_PASSWORD, "ann", "ann turns the wheel")


async def test_without_an_address_nobody_can_be_known(
    directories: Directories, settings: LdapSettings
) -> None:
    with pytest.raises(Unavailable, match="no email address"):
        await directories.prove(settings, SEARCHER_PASSWORD, "mailless", "nobody writes to me")


async def test_a_directory_that_cannot_show_who_it_is_is_told_nothing(
    directories: Directories, settings: LdapSettings, directory: Directory
) -> None:
    for url in (directory.tls_url, directory.url):
        untrusted = replace(settings, url=url, ca="")
        with pytest.raises(Unavailable, match="cannot be asked"):
            await directories.prove(untrusted, SEARCHER_PASSWORD, "ann", "ann turns the wheel")
    # A certificate for another name is as good as none.
    misnamed = replace(settings, url=directory.tls_url.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(Unavailable, match="cannot be asked"):
        await directories.prove(misnamed, SEARCHER_PASSWORD, "ann", "ann turns the wheel")


async def test_what_is_wrong_with_the_directory_is_said_to_be_that(
    directories: Directories, settings: LdapSettings
) -> None:
    with pytest.raises(Unavailable, match="does not let us search"):
        await directories.prove(settings, "not the searcher's", "ann", "ann turns the wheel")
    nowhere = replace(settings, url="ldaps://127.0.0.1:1")
    with pytest.raises(Unavailable, match="cannot be asked"):
        await directories.prove(nowhere, SEARCHER_PASSWORD, "ann", "ann turns the wheel")


async def test_a_tenant_does_not_look_into_our_own_network(settings: LdapSettings) -> None:
    guarded = Directories(Destinations())
    with pytest.raises(Unavailable, match="not at an address"):
        await guarded.prove(settings, SEARCHER_PASSWORD, "ann", "ann turns the wheel")
    guarded.close()
