"""An organisation that uses the installation, apart from all others."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from services.tenancy.domain.plan import UNLIMITED_PLAN, Quotas

DEFAULT_SLUG = "default"
"""The tenant that the first start opens."""

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
"""What a slug looks like: that of a DNS label, so that it may become one."""


class TenantStatus(StrEnum):
    """Whether its users may enter. One that is closing is erased when its grace is over."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSING = "closing"


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
    plan: str = UNLIMITED_PLAN
    plan_version: int = 0
    """The version of the plan that all were told; another than the plan's: they are to be."""
    own_quotas: Quotas = field(default_factory=dict)
    """What differs from the plan."""
    status_reason: str = ""
    """Why it is suspended or closing, as whoever did it said."""
    erased_from: datetime | None = None
    """Of one that is closing: from when on it is erased."""
