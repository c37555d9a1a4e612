"""Why somebody may do something, or may not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from libs.common.auth.roles import PERMISSIONS, covers
from services.tenancy.domain.api_key import ApiKey
from services.tenancy.domain.member import Member, MemberStatus
from services.tenancy.domain.tenant import Tenant, TenantStatus

PLATFORM_ADMIN = "platform:admin"
_OF_OTHERS = {
    PLATFORM_ADMIN: "this is for the platform's own administrators",
    "device:itself": "this is for a device, with its own token",
}
_MEMBER = "tenant:member"
_SESSION = "session:own"


@dataclass(frozen=True, slots=True)
class Ground:
    """What gives a permission: a pattern, and the role that holds it; None: a scope of the key."""

    permission: str
    pattern: str
    role: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether somebody may, and why.

    `needs` are the permissions that it takes, all of them; `grounds` what gives them; `missing` those
    that nothing gives. `hindrances` stand against it whatever is given; `limits` are what
    is left out although they may.
    """

    needs: tuple[str, ...]
    grounds: tuple[Ground, ...]
    missing: tuple[str, ...]
    hindrances: tuple[str, ...]
    limits: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """Whether they may, within the limits."""
        return not self.missing and not self.hindrances


def explain_member(
    needs: Sequence[str],
    member: Member,
    roles: Mapping[str, Sequence[str]],
    tenant: Tenant,
    *,
    is_suspended: bool,
    is_platform_admin: bool,
) -> Explanation:
    """Explain what a user of a tenant may. `roles` are theirs, with what each permits.

    `is_platform_admin` is False also where that is nobody's business.
    """
    hindrances = [*_of_tenant(tenant)]
    if member.status is MemberStatus.INVITED:
        hindrances.append("the invitation is not accepted yet")
    if member.status is MemberStatus.DISABLED:
        hindrances.append("the user is disabled in this tenant")
    if is_suspended:
        hindrances.append("the user is suspended in the whole installation")
    given = {_MEMBER, _SESSION, *([PLATFORM_ADMIN] if is_platform_admin else [])}
    held = [(role, pattern) for role, patterns in roles.items() for pattern in patterns]
    return _explained(needs, given, held, hindrances, [])


def explain_key(needs: Sequence[str], key: ApiKey, tenant: Tenant, *, now: datetime) -> Explanation:
    """Explain what an API key may."""
    hindrances = [*_of_tenant(tenant)]
    limits = []
    if key.expires_at is not None and key.expires_at <= now:
        hindrances.append(f"the key expired at {key.expires_at.isoformat()}")
    elif key.expires_at is not None:
        limits.append(f"until {key.expires_at.isoformat()}")
    if _SESSION in needs:
        hindrances.append("this is for people who are logged in, not for API keys")
    if key.allowed_networks:
        limits.append(f"from {', '.join(map(str, key.allowed_networks))} alone")
    if key.device_groups is not None:
        groups = ", ".join(sorted(map(str, key.device_groups)))
        limits.append(f"of devices, those in the groups {groups} and below them alone")
    held = [(None, scope) for scope in key.scopes]
    return _explained(needs, {_MEMBER, _SESSION}, held, hindrances, limits)


def _explained(
    needs: Sequence[str],
    given: Iterable[str],
    held: Sequence[tuple[str | None, str]],
    hindrances: list[str],
    limits: list[str],
) -> Explanation:
    wanted = [permission for permission in needs if permission not in given]
    grounds = tuple(
        Ground(permission, pattern, role)
        for permission in wanted
        if permission in PERMISSIONS
        for role, pattern in held
        if covers((pattern,), permission)
    )
    granted = {ground.permission for ground in grounds}
    return Explanation(
        needs=tuple(needs),
        grounds=grounds,
        missing=tuple(p for p in wanted if p not in granted and p not in _OF_OTHERS),
        hindrances=(*hindrances, *(_OF_OTHERS[p] for p in wanted if p in _OF_OTHERS)),
        limits=tuple(limits),
    )


def _of_tenant(tenant: Tenant) -> list[str]:
    return [] if tenant.status is TenantStatus.ACTIVE else [f"the tenant is {tenant.status}"]
