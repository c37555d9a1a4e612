"""What ingest knows of a tenant: whether its devices may come in."""

from enum import StrEnum


class TenantStatus(StrEnum):
    """How a tenant stands. One that was never said to be otherwise is active."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETED = "deleted"

    @property
    def is_closed(self) -> bool:
        """Whether its devices are shut out."""
        return self is not TenantStatus.ACTIVE
