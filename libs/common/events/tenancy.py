"""What tenancy says: which tenants there are, who belongs to them, and what they may do.

`user.*` tells what a tenant knows of a user: it is said once for each tenant concerned, and says
nothing of the others. A user joins with `user.created` and leaves with `user.deleted`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar
from uuid import UUID

import msgspec

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


class QuotaTerms(msgspec.Struct, frozen=True):
    """How much a tenant may have of something (None: any amount), and from which percentage it is warned."""

    most: int | None
    warn_percent: int


class TenantQuotasSet(Event, frozen=True, kw_only=True):
    """What a tenant may have and use from now on: all quotas, by resource, those without a limit too."""

    type: ClassVar[str] = "tenant.quotas_set.v1"
    source: ClassVar[str] = "tenancy"
    plan: str
    quotas: Mapping[str, QuotaTerms]


class QuotaExceeded(Event, frozen=True, kw_only=True):
    """A tenant is near a quota, or has reached it: `level` is "warning" or "reached".

    It is said once a day of each quota and level. At "reached" no more is taken.
    """

    type: ClassVar[str] = "quota.exceeded.v1"
    source: ClassVar[str] = "tenancy"
    resource: str
    level: str
    most: int
    used: int


class QuotaRelieved(Event, frozen=True, kw_only=True):
    """A tenant is well within a quota again: it uses less, may use more, or a new day has begun."""

    type: ClassVar[str] = "quota.relieved.v1"
    source: ClassVar[str] = "tenancy"
    resource: str


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


class UserPasswordChanged(Event, frozen=True, kw_only=True):
    """A user has another password; their sessions in the tenant end, but for one."""

    type: ClassVar[str] = "user.password_changed.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID
    spared_session_id: UUID | None = None
    """The session in which they changed it. None: all end, as after a forgotten password."""


class MembershipChanged(Event, frozen=True, kw_only=True):
    """A user has these roles in the tenant from now on, or has to do with other devices than before."""

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


class ApiKeyCreated(Event, frozen=True, kw_only=True):
    """A key was made that a program may show."""

    type: ClassVar[str] = "api_key.created.v1"
    source: ClassVar[str] = "tenancy"
    key_id: UUID
    name: str


class ApiKeyChanged(Event, frozen=True, kw_only=True):
    """A key may do something else from now on, ends at another time, or has another secret."""

    type: ClassVar[str] = "api_key.changed.v1"
    source: ClassVar[str] = "tenancy"
    key_id: UUID


class ApiKeyRevoked(Event, frozen=True, kw_only=True):
    """A key is void; connections opened with it are cut."""

    type: ClassVar[str] = "api_key.revoked.v1"
    source: ClassVar[str] = "tenancy"
    key_id: UUID


class UserFactorsChanged(Event, frozen=True, kw_only=True):
    """Something happened to what a user proves themselves by beside the password.

    `change` is totp_added, passkey_added, removed, recovery_codes_renewed, recovery_code_used,
    passkey_cloned (a copy of a passkey was refused) or reset (by the platform's admin).
    """

    type: ClassVar[str] = "user.factors_changed.v1"
    source: ClassVar[str] = "tenancy"
    user_id: UUID
    change: str
