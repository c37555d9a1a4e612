"""A user as the installation knows them: who may log in, and where to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from services.tenancy.domain.member import MemberStatus
from services.tenancy.domain.role import permissions_of
from services.tenancy.domain.tenant import TenantStatus


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's place in one tenant."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    tenant_status: TenantStatus
    name: str
    """What the tenant calls the user."""
    status: MemberStatus
    roles: tuple[str, ...]
    own_roles: Mapping[str, tuple[str, ...]]
    """What those of the roles permit that the tenant made for itself."""

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
    memberships: tuple[Membership, ...]

    @property
    def open_memberships(self) -> tuple[Membership, ...]:
        """The tenants they may enter now."""
        return tuple(m for m in self.memberships if m.is_open)

    @property
    def may_log_in(self) -> bool:
        """Whether there is anything left to log in for."""
        return not self.is_suspended and bool(self.open_memberships)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a login is checked against. `password_hash` is None for a user without a password."""

    user_id: UUID
    password_hash: str | None = field(repr=False)


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
