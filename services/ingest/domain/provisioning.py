"""Keys by which devices register themselves, and tokens by which devices are claimed."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict, Forbidden

KEY_PREFIX = "iiotp_"
CLAIM_PREFIX = "iiotc_"
MOST_KEYS = 1_000
"""Of a tenant."""


@dataclass(frozen=True, slots=True)
class ProvisioningKey:
    """What a fleet of devices shares, and registers with. Times are UTC."""

    id: UUID
    name: str
    device_type: str
    profile_id: UUID | None
    group_id: UUID | None
    tags: tuple[str, ...]
    is_enabled: bool
    expires_at: datetime | None
    max_devices: int | None
    devices: int
    """How many registered with it."""
    created_at: datetime
    updated_at: datetime
    version: int

    def check(self, now: datetime) -> None:
        """Raise Forbidden if the key is not good any more."""
        if not self.is_enabled:
            raise Forbidden("the provisioning key is switched off")
        if self.expires_at is not None and self.expires_at <= now:
            raise Forbidden("the provisioning key has expired")

    def check_room(self) -> None:
        """Raise Conflict if as many registered with it as may."""
        if self.max_devices is not None and self.devices >= self.max_devices:
            raise Conflict(f"{self.max_devices} devices have registered with this key, as may")


def new_provisioning_key() -> str:
    """Return a fresh provisioning key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_claim_token() -> str:
    """Return a fresh claim token; short, so that its QR code is coarse enough for a label."""
    return CLAIM_PREFIX + secrets.token_urlsafe(16)
