"""A user, as tenancy describes one who may log in."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Membership:
    """A tenant that the user may enter, and what they may do there (patterns of permissions)."""

    tenant_id: UUID
    tenant_slug: str
    tenant_name: str
    name: str
    """What the tenant calls the user."""
    roles: Sequence[str]
    permissions: frozenset[str]
    tenant_plan: str | None = None
    device_groups: frozenset[UUID] | None = None
    """The groups of devices that the user is limited to, with all below them; None: all devices."""
    second_factor_required: bool = False
    """Whether the tenant lets nobody in by a password alone."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user who may log in; the oldest membership stands first."""

    user_id: UUID
    email: str
    is_platform_admin: bool
    memberships: Sequence[Membership]
    factors: Sequence[str] = ()
    """By what they prove themselves the second time; empty: a password is enough."""

    def membership_in(self, tenant_id: UUID) -> Membership | None:
        """Return the membership of a tenant, if there is one."""
        return next((m for m in self.memberships if m.tenant_id == tenant_id), None)

    def membership_called(self, slug: str) -> Membership | None:
        """Return the membership of the tenant with this short name, if there is one."""
        return next((m for m in self.memberships if m.tenant_slug == slug), None)


@dataclass(frozen=True, slots=True)
class Invited:
    """Whom an invitation asks into which tenant."""

    tenant_id: UUID
    user_id: UUID
    email: str


@dataclass(frozen=True, slots=True)
class PasswordPolicy:
    """How long a new password must be, and may be: characters."""

    min_length: int
    max_length: int
