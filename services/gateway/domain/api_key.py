"""An API key, as tenancy describes one that is good."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.common.addresses import Network, is_within
from libs.common.auth.principal import Kind, Principal


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a key may do, from where and until when. `good_until` None: without end."""

    key_id: UUID
    tenant_id: UUID
    scopes: frozenset[str]
    allowed_networks: tuple[Network, ...]
    device_groups: frozenset[UUID] | None
    good_until: datetime | None
    tenant_plan: str | None = None

    def is_over(self, now: datetime) -> bool:
        """Whether it has come to its end."""
        return self.good_until is not None and self.good_until <= now

    def may_come_from(self, address: str) -> bool:
        """Whether it may be used from an address."""
        return not self.allowed_networks or is_within(address, self.allowed_networks)

    @property
    def principal(self) -> Principal:
        """What the services see of it: the key itself, and no user behind it."""
        return Principal(
            subject=self.key_id,
            tenant_id=self.tenant_id,
            kind=Kind.API_KEY,
            permissions=self.scopes,
            groups=self.device_groups,
        )


@dataclass(frozen=True, slots=True)
class Use:
    """When a key was used last, and from where."""

    tenant_id: UUID
    key_id: UUID
    at: datetime
    address: str
