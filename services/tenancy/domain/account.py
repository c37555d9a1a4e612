"""A user as the installation knows them: who may log in, and where to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.reach import Groups
from services.tenancy.domain.role import permissions_of
from services.tenancy.domain.second_factor import NO_TERMS, Terms
from services.tenancy.domain.tenant import TenantStatus
from services.tenancy.domain.token import TokenPurpose


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's place in one tenant."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    tenant_status: TenantStatus
    tenant_plan: str
    name: str
    """What the tenant calls the user."""
    status: MemberStatus
    roles: tuple[str, ...]
    own_roles: Mapping[str, tuple[str, ...]]
    """What those of the roles permit that the tenant made for itself."""
    device_groups: Groups = None
    """The groups of devices that they are limited to, with all below them; None: all devices."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the user is called there, and what the tenant is."""
        return (self.name, self.tenant_slug, self.tenant_name)

    @property
    def is_open(self) -> bool:
        """Whether the user may enter the tenant now."""
        return self.status is MemberStatus.ACTIVE and self.tenant_status is TenantStatus.ACTIVE

    @property
    def permissions(self) -> tuple[str, ...]:
        """What the user may do there, sorted."""
        return permissions_of(self.roles, self.own_roles)


@dataclass(frozen=True, slots=True)
class Account:
    """A user with all their memberships, oldest first."""

    user_id: UUID
    email: str
    is_platform_admin: bool
    is_suspended: bool
    is_verified: bool
    """Whether it was proved that the user reads what is sent to the address."""
    memberships: tuple[Membership, ...]
    terms: Terms = NO_TERMS
    """What a login of theirs takes beyond the first factor."""

    @property
    def open_memberships(self) -> tuple[Membership, ...]:
        """The tenants they may enter now."""
        return tuple(m for m in self.memberships if m.is_open)

    @property
    def known_as(self) -> tuple[str, ...]:
        """What the user is called, and where: none of it belongs into a password."""
        return (self.email, *(n for m in self.memberships for n in m.names))

    @property
    def may_log_in(self) -> bool:
        """Whether there is anything left to log in for."""
        return not self.is_suspended and bool(self.open_memberships)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a login is checked against. `password_hash` is None for a user without a password."""

    user_id: UUID
    password_hash: str | None = field(repr=False)
    is_verified: bool

    @property
    def is_settled(self) -> bool:
        """Whether who chose the password has proved the address: nobody else takes the account over."""
        return self.is_verified and self.password_hash is not None


@dataclass(frozen=True, slots=True)
class Invited:
    """Whom an invitation asks into which tenant, and until when.

    `password_hash` is what they must prove themselves with; None: they choose a password.
    """

    tenant_id: UUID
    user_id: UUID
    email: str
    password_hash: str | None = field(repr=False)
    expires_at: datetime
    is_mailed: bool
    """Whether this is the token that went to the address: who has it reads what is sent there."""
    is_verified: bool
    """Whether that was proved before."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Who has joined which tenant."""

    tenant_id: UUID
    user_id: UUID
    email: str


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """Whose a token is that went to their address, and what it is good for."""

    user_id: UUID
    purpose: TokenPurpose
    expires_at: datetime
    password_hash: str | None = field(repr=False)
