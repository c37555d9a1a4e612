"""An organisation that uses the installation, apart from all others."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

DEFAULT_SLUG = "default"
"""The tenant that the first start opens."""

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
"""What a slug looks like: that of a DNS label, so that it may become one."""


class TenantStatus(StrEnum):
    """Whether its users may enter."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant. `slug` is its name in addresses and never changes. Times are UTC."""

    id: UUID
    slug: str
    name: str
    status: TenantStatus
    created_at: datetime
    updated_at: datetime
    version: int
