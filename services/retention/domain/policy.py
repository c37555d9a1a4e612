"""For how long what is kept."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

LEAST_DAYS = 1
MOST_DAYS = 36_500


class DataType(StrEnum):
    """What a policy may be about."""

    TELEMETRY = "telemetry"
    QUARANTINE = "quarantine"
    ALERTS = "alerts"
    ANOMALIES = "anomalies"
    AUDIT = "audit"


ENFORCED = frozenset({DataType.TELEMETRY})
"""Of the others a policy is kept, and nothing is erased by it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A tenant's wish for one type of data. Each change raises its version."""

    id: UUID
    data_type: DataType
    keep_days: int
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def is_enforced(self) -> bool:
        """Whether anything is erased by it."""
        return self.data_type in ENFORCED
