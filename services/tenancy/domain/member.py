"""A user as one tenant knows them."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from libs.common.auth.roles import ADMIN
from services.tenancy.domain.reach import Groups


class MemberStatus(StrEnum):
    """Whether the user may enter this tenant."""

    INVITED = "invited"
    """Not yet: the invitation has not been accepted."""
    ACTIVE = "active"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Member:
    """A user with their roles in one tenant.

    `name` is the one this tenant gave them, and `created_at` (UTC) when they were invited to it:
    neither tells whether the installation knew them before.
    """

    id: UUID
    email: str
    name: str
    roles: tuple[str, ...]
    status: MemberStatus
    created_at: datetime
    updated_at: datetime
    version: int
    device_groups: Groups = None
    """The groups of devices that they are limited to, with all below them; None: all devices."""

    @property
    def is_administrator(self) -> bool:
        """Whether they can administer all of the tenant now."""
        return (
            self.status is MemberStatus.ACTIVE
            and ADMIN in self.roles
            and self.device_groups is None
        )
