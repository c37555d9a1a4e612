"""A connection out, as a tenant has set it up."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class State(StrEnum):
    """How a connector does."""

    DISABLED = "disabled"
    """Switched off by the tenant."""
    WAITING = "waiting"
    """No process has taken it yet."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DEGRADED = "degraded"
    """Connected, and not all of it works; the reason says what does not."""
    FAILED = "failed"
    """Not connected; it is tried again."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What is kept of a connector. Times are UTC; `secrets` are sealed, by name."""

    id: UUID
    tenant_id: UUID
    name: str
    kind: str
    is_enabled: bool
    settings: dict[str, Any]
    secrets: dict[str, str]
    memory: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    version: int
    state: State
    reason: str
    state_at: datetime | None


@dataclass(frozen=True, slots=True)
class Held:
    """A connector that a process has the lease of, as far as that is known across tenants."""

    tenant_id: UUID
    id: UUID
    version: int
