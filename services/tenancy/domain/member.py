"""A user as one tenant knows them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class MemberStatus(StrEnum):
    """Whether the user may enter this tenant."""

    ACTIVE = "active"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Member:
    """A user with their roles in one tenant.

    `name` is the one this tenant gave them, and `created_at` (UTC) when they joined it: neither
    tells whether the installation knew them before.
    """

    id: UUID
    email: str
    name: str
    roles: tuple[str, ...]
    status: MemberStatus
    created_at: datetime
    updated_at: datetime
    version: int
