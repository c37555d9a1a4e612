"""Where a tenant's people log in when it is not here: its identity provider, and what that vouches for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

from cryptography.x509 import load_pem_x509_certificate

from libs.common.errors import Unauthenticated, invalid

DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9-]+\Z")


class Kind(StrEnum):
    """How one speaks with it."""

    OIDC = "oidc"
    SAML = "saml"
    LDAP = "ldap"


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """An OpenID provider (OpenID Connect Core 1.0), by the authorization code flow with PKCE."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    groups_claim: str = "groups"


@dataclass(frozen=True, slots=True)
class SamlSettings:
    """A SAML 2.0 identity provider: web browser SSO, request by redirect, response by POST."""

    entity_id: str
    """Its own name: who issues the assertions."""
    sign_in_url: str
    certificates: tuple[str, ...]
    """PEM; any of them may have signed. Two while one replaces the other."""
    email_attribute: str = "email"
    name_attribute: str = "name"
    groups_attribute: str = "groups"


@dataclass(frozen=True, slots=True)
class LdapSettings:
    """A directory that people prove their password to (RFC 4513, simple bind over TLS)."""

    url: str
    """ldaps://host or ldap://host, which is upgraded by StartTLS before anything is said."""
    base_dn: str
    bind_dn: str = ""
    """Who searches; empty: anonymously."""
    user_filter: str = "(|(uid={login})(mail={login})(sAMAccountName={login}))"
    group_filter: str = "(member={dn})"
    """Empty: the groups are read from the user's `memberOf`."""
    group_base_dn: str = ""
    id_attribute: str = "entryUUID"
    email_attribute: str = "mail"
    name_attribute: str = "cn"
    ca: str = ""
    """PEM of the authority that signed its certificate; empty: those the machine trusts."""


ProviderSettings: TypeAlias = OidcSettings | SamlSettings | LdapSettings


@dataclass(frozen=True, slots=True)
class Vouched:
    """What a provider says of someone who has just proved to it who they are."""

    subject: str = field(repr=False)
    """By which the provider knows them, for good: addresses and names change."""
    email: str
    name: str
    groups: frozenset[str]


@dataclass(frozen=True, slots=True)
class Offered:
    """A provider as those may see it who are not known yet: a button at the login."""

    tenant_id: UUID
    id: UUID
    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """A provider as one tenant uses it."""

    id: UUID
    name: str
    """What is on the button."""
    kind: Kind
    settings: ProviderSettings
    domains: tuple[str, ...]
    """It vouches for addresses of these domains alone."""
    roles_of_group: Mapping[str, tuple[str, ...]]
    default_roles: tuple[str, ...]
    """What everybody gets who comes in by it."""
    is_enabled: bool
    created_at: datetime
    updated_at: datetime
    version: int

    def check_vouches_for(self, email: str) -> None:
        """Raise Unauthenticated if the address lies outside of the provider's domains.

        Otherwise whoever runs it could enter as anybody.
        """
        if email.rpartition("@")[2] not in self.domains:
            raise Unauthenticated(
                f"{self.name} vouches for addresses of {', '.join(self.domains)} alone"
            )

    def roles_for(self, groups: Iterable[str]) -> tuple[str, ...]:
        """Return the roles that someone in these groups has, sorted.

        Group names are compared without regard to case: directories have none.
        """
        mine = {group.casefold() for group in groups}
        held = set(self.default_roles)
        for group, roles in self.roles_of_group.items():
            if group.casefold() in mine:
                held.update(roles)
        return tuple(sorted(held))


def check_settings(settings: ProviderSettings) -> None:
    """Raise Invalid for settings with which nobody could come in, or anybody."""
    match settings:
        case OidcSettings():
            if "openid" not in settings.scopes:
                raise invalid("#/settings/scopes", "must hold openid")
        case SamlSettings():
            for position, certificate in enumerate(settings.certificates):
                try:
                    load_pem_x509_certificate(certificate.encode())
                except ValueError:
                    raise invalid(
                        f"#/settings/certificates/{position}", "is not a certificate in PEM"
                    ) from None
        case LdapSettings():
            for name, asked, placeholder in (
                ("user_filter", settings.user_filter, "{login}"),
                ("group_filter", settings.group_filter, "{dn}"),
            ):
                if asked and placeholder not in asked:
                    raise invalid(f"#/settings/{name}", f"must hold {placeholder}")
            if not settings.user_filter:
                raise invalid("#/settings/user_filter", "must hold {login}")
            if urlsplit(settings.url).scheme not in {"ldap", "ldaps"}:
                raise invalid("#/settings/url", "must begin with ldaps:// or ldap://")
