"""Who may join a tenant without being invited: a policy, and who has registered by it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.auth.roles import ADMIN
from libs.common.errors import FieldError, Invalid, invalid

DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")  # fmt: skip


class Admits(StrEnum):
    """Whom a tenant lets register themselves."""

    NOBODY = "nobody"
    DOMAINS = "domains"
    """Who has an address at one of the policy's domains."""
    ANYONE = "anyone"


@dataclass(frozen=True, slots=True)
class RegistrationPolicy:
    """Whom a tenant lets register themselves, and the role they get."""

    admits: Admits
    domains: tuple[str, ...]
    role: str

    def lets_in(self, email: str) -> bool:
        """Whether this address may register. A domain's subdomains are others."""
        match self.admits:
            case Admits.NOBODY:
                return False
            case Admits.DOMAINS:
                return email.rpartition("@")[2] in self.domains
            case Admits.ANYONE:
                return True


NOBODY = RegistrationPolicy(Admits.NOBODY, (), "viewer")
"""The policy of a tenant that has none."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Who registered, until they confirm the address."""

    tenant_id: UUID
    id: UUID
    email: str
    name: str
    password_hash: str = field(repr=False)
    expires_at: datetime


def new_policy(admits: Admits, domains: Sequence[str], role: str) -> RegistrationPolicy:
    """Return a policy. Raises Invalid for what cannot be one."""
    if role == ADMIN:
        raise invalid("#/role", "nobody becomes an administrator by registering")
    folded = [domain.lower() for domain in domains]
    faults = [
        FieldError(f"#/domains/{position}", "is not a domain such as plant.example")
        for position, domain in enumerate(folded)
        if not DOMAIN.match(domain)
    ]
    if faults:
        raise Invalid("A domain is not one.", errors=faults)
    if (admits is Admits.DOMAINS) != bool(folded):
        raise invalid("#/domains", "are named if, and only if, domains are what is admitted")
    return RegistrationPolicy(admits, tuple(sorted(set(folded))), role)
