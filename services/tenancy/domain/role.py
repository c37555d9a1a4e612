"""What roles permit: those that all tenants have, and those a tenant made for itself."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.common.auth.roles import BUILT_IN, covers, is_pattern
from libs.common.errors import FieldError, Forbidden, Invalid, invalid

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Role:
    """A named set of permissions, which may be patterns (`alerts:*`)."""

    name: str
    description: str
    permissions: tuple[str, ...]
    is_built_in: bool


BUILT_IN_ROLES = tuple(
    Role(role.name, role.description, role.permissions, is_built_in=True)
    for role in BUILT_IN.values()
)


def check_role(role: Role) -> None:
    """Raise Invalid if a tenant's own role has no fit name, or permits what there is not."""
    if not NAME.match(role.name):
        raise invalid("#/name", "must be 1 to 64 of a-z, 0-9, - and _, not - or _ outside")
    if role.name in BUILT_IN:
        raise invalid("#/name", "is the name of a built-in role")
    unknown = [
        FieldError(f"#/permissions/{position}", "there is no such permission")
        for position, pattern in enumerate(role.permissions)
        if not is_pattern(pattern)
    ]
    if unknown:
        raise Invalid("A permission is not known; /api/v1/permissions lists them.", errors=unknown)


def permissions_of(roles: Iterable[str], own_roles: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return what the roles permit together, sorted.

    `own_roles` are the tenant's. A role that is no more permits nothing.
    """
    held: set[str] = set()
    for name in roles:
        held.update(BUILT_IN[name].permissions if name in BUILT_IN else own_roles.get(name, ()))
    return tuple(sorted(held))


def check_may_hand_out(held: Iterable[str], permissions: Iterable[str]) -> None:
    """Raise Forbidden if someone would give, or take away, more than they hold themselves."""
    patterns = tuple(held)
    beyond = sorted(p for p in permissions if not covers(patterns, p))
    if beyond:
        raise Forbidden(f"this reaches beyond your own permissions: {', '.join(beyond)}")
