"""An API key: what a program shows instead of a user, and what it may do with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from libs.common.addresses import Network
from libs.common.auth.roles import is_pattern
from libs.common.errors import FieldError, Forbidden, Invalid, invalid
from services.tenancy.domain.tenant import TenantStatus

MAX_OVERLAP = timedelta(days=7)
"""How long the secret before is good beside the new one, at most."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of one tenant. It has no user: it goes on when `created_by` has left.

    `scopes` are patterns of permissions. `allowed_networks` empty: from anywhere. `device_groups`
    None: all devices. `expires_at` None: never. `overlap_until`: until when the secret before the
    last rotation is good. Times are UTC.
    """

    id: UUID
    name: str
    handle: str
    scopes: tuple[str, ...]
    allowed_networks: tuple[Network, ...]
    device_groups: frozenset[UUID] | None
    expires_at: datetime | None
    overlap_until: datetime | None
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    version: int
    created_by_name: str | None = None
    """What the tenant calls who made it; None if they have left."""
    last_used_at: datetime | None = None
    last_used_address: str | None = None


@dataclass(frozen=True, slots=True)
class FoundKey:
    """What one finds by a secret, before its tenant is known. `good_until` None: without end."""

    tenant_id: UUID
    key_id: UUID
    tenant_status: TenantStatus
    tenant_plan: str
    scopes: Sequence[str]
    allowed_networks: Sequence[str]
    device_groups: Sequence[UUID] | None
    good_until: datetime | None

    def is_good(self, now: datetime) -> bool:
        """Whether it opens the tenant now."""
        return self.tenant_status is TenantStatus.ACTIVE and (
            self.good_until is None or self.good_until > now
        )


@dataclass(frozen=True, slots=True)
class Use:
    """When a key was used last, and from where."""

    tenant_id: UUID
    key_id: UUID
    at: datetime
    address: str


def check_scopes(scopes: Sequence[str]) -> None:
    """Raise Invalid if a scope is no permission that there is, nor a pattern of any."""
    unknown = [
        FieldError(f"#/scopes/{position}", "there is no such permission")
        for position, scope in enumerate(scopes)
        if not is_pattern(scope)
    ]
    if unknown:
        raise Invalid("A scope is not known; /api/v1/permissions lists them.", errors=unknown)


def check_end(expires_at: datetime | None, now: datetime) -> None:
    """Raise Invalid if a key would end before it begins."""
    if expires_at is not None and expires_at <= now:
        raise invalid("#/expires_at", "must lie in the future")


def check_reach(reach: frozenset[UUID] | None, groups: frozenset[UUID] | None) -> None:
    """Raise Forbidden if a key reaches devices that the caller, who has this `reach`, does not."""
    if reach is None:
        return
    if groups is None or not groups <= reach:
        raise Forbidden(
            "you are limited to device groups: a key of yours is limited to some of these"
        )
