"""What tenancy says: which tenants there are, who belongs to them, and what they may do.

`user.*` tells what a tenant knows of a user: it is said once for each tenant concerned, and says
nothing of the others. A user joins with `user.created` and leaves with `user.deleted`.
"""

from collections.abc import Sequence
from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class TenantCreated(Event, frozen=True, kw_only=True):
    """A tenant was opened."""

    type: ClassVar[str] = "tenant.created.v1"
    source: ClassVar[str] = "tenancy"
    slug: str
    name: str


class TenantUpdated(Event, frozen=True, kw_only=True):
    """A tenant was renamed, suspended or reinstated."""

    type: ClassVar[str] = "tenant.updated.v1"
    source: ClassVar[str] = "tenancy"
    slug: str
    name: str
    status: str
    """"active" or "suspended": then nobody gets in.

    Sessions, live connections and devices' connections are cut when this is heard; a process that
    does not hear it finds it out by itself, of devices within `INGEST_VERIFY_EVERY`.
    """


class TenantDeleted(Event, frozen=True, kw_only=True):
    """A tenant was removed; whoever keeps anything of it erases that, and hears it twice.

    It is said at once, and again a day later for what was under way the first time. Points lose
    their names at once and go when they are a day old. What a tenant's end causes (rules deleted,
    firings over) is not said besides: whoever heard that would keep it.
    """

    type: ClassVar[str] = "tenant.deleted.v1"
    source: ClassVar[str] = "tenancy"
    slug: str


class UserCreated(Event, frozen=True, kw_only=True):
    """A user joined the tenant."""

    type: ClassVar[str] = "user.created.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID
    email: str
    name: str


class UserUpdated(Event, frozen=True, kw_only=True):
    """The name by which the tenant knows a user changed."""

    type: ClassVar[str] = "user.updated.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID
    email: str
    name: str


class UserDisabled(Event, frozen=True, kw_only=True):
    """A user may no longer enter the tenant; sessions and connections there are cut."""

    type: ClassVar[str] = "user.disabled.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID


class UserEnabled(Event, frozen=True, kw_only=True):
    """A user may enter the tenant again."""

    type: ClassVar[str] = "user.enabled.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID


class UserDeleted(Event, frozen=True, kw_only=True):
    """A user left the tenant; what it keeps of the person is erased."""

    type: ClassVar[str] = "user.deleted.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID


class MembershipChanged(Event, frozen=True, kw_only=True):
    """A user has these roles in the tenant from now on."""

    type: ClassVar[str] = "membership.changed.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID
    roles: Sequence[str]


class MembershipRemoved(Event, frozen=True, kw_only=True):
    """A user has no roles in the tenant any more."""

    type: ClassVar[str] = "membership.removed.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID


class RoleChanged(Event, frozen=True, kw_only=True):
    """One of the tenant's own roles was made, or permits something else from now on."""

    type: ClassVar[str] = "role.changed.v1"
    source: ClassVar[str] = "tenancy"
    name: str
    permissions: Sequence[str]


class RoleDeleted(Event, frozen=True, kw_only=True):
    """One of the tenant's own roles was removed."""

    type: ClassVar[str] = "role.deleted.v1"
    source: ClassVar[str] = "tenancy"
    name: str
