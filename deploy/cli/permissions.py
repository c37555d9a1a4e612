"""Who may call what: the table of operations, and the matrix of roles, from the routes themselves."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from fastapi import APIRouter

from libs.common.auth.operations import Operation
from libs.common.auth.roles import BUILT_IN, PERMISSIONS, covers
from libs.common.db.roles import SERVICES
from libs.common.http.access import operations_of

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "libs/common/auth/operations.txt"
MATRIX = ROOT / "docs/permissions.md"

SPECIAL = {
    "platform:admin": "the platform's admins, who stand apart from any tenant",
    "session:own": "whoever is logged in; an API key is not",
    "tenant:member": "whoever comes in for a tenant; about others users:read",
    "device:itself": "a device, by its own token",
}
"""What routes ask for and no role can give."""

HEAD = """\
# Who may do what

Written by `python -m deploy.cli permissions --write` from the routes and roles themselves. Tests ask the running
platform whether it answers so (`tests/contract/test_permissions.py`): who lacks what an operation needs gets 403, whatever is
wrong with the rest of the request, and without a credential 401.

A permission is `<resource>:<action>`. A role or an API key holds patterns of them: `alerts:*` is every action on
alerts, `*:read` reading of everything, `*` all. Besides the five built-in roles a tenant makes its own. An API key
holds its scopes and no role. `POST /api/v1/authz/explain` says why somebody may, or may not, do something.

"""


def declared() -> list[Operation]:
    """Return every operation that the API describes, with the permissions that its route declares."""
    found = {
        (operation.path, method): Operation(
            operation.path, method, tuple((operation.permission or "").split())
        )
        for service in SERVICES
        for router in _routers(service)
        for operation in operations_of(router.routes)
        for method in operation.methods
        if operation.in_schema and operation.path.startswith("/api/")
    }
    return sorted(found.values())


def table() -> str:
    """Return the table of operations."""
    return "".join(f"{operation.line}\n" for operation in declared())


def matrix() -> str:
    """Return the document that people read."""
    roles = list(BUILT_IN)
    head = f"| {' | '.join(roles)} |\n|{' :-: |' * len(roles)}"
    permissions = "".join(
        f"| `{name}` | {does} | {' | '.join(_holds(role, [name]) for role in roles)} |\n"
        for name, does in PERMISSIONS.items()
    )
    operations = "".join(
        f"| {o.method} | `{o.path}` | {_needs(o)} | {_cells(o, roles)} |\n" for o in declared()
    )
    return (
        f"{HEAD}## Permissions\n\n| permission | what it lets one do {_split(head)}\n{permissions}\n"
        f"## Operations\n\n| | operation | needs {_split(head, columns=3)}\n{operations}"
    )


def _split(head: str, columns: int = 2) -> str:
    names, dashes = head.split("\n")
    return f"{names}\n|{' --- |' * columns}{dashes[1:]}"


def _holds(role: str, permissions: list[str]) -> str:
    held = BUILT_IN[role].permissions
    return "✓" if all(covers(held, permission) for permission in permissions) else ""


def _needs(operation: Operation) -> str:
    if not operation.permissions:
        return "nothing: open to anyone"
    return ", ".join(SPECIAL.get(p, f"`{p}`") for p in operation.permissions)


def _cells(operation: Operation, roles: list[str]) -> str:
    given = [p for p in operation.permissions if p not in SPECIAL]
    if {"session:own", "tenant:member"} & set(operation.permissions) or not operation.permissions:
        return " | ".join("✓" for _ in roles)
    if len(given) < len(operation.permissions):
        return " | ".join("" for _ in roles)
    return " | ".join(_holds(role, given) for role in roles)


def _routers(service: str) -> Iterator[APIRouter]:
    package = import_module(f"services.{service}.api")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for value in vars(import_module(module.name)).values():
            if isinstance(value, APIRouter):
                yield value
