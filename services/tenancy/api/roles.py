"""Roles and permissions."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import Field

from libs.common.auth.operations import needing
from libs.common.auth.roles import PERMISSIONS
from libs.common.errors import Conflict, Forbidden, NotFound
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Page
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from services.tenancy.api.deps import CanReadRoles, CanWriteRoles, InTransaction
from services.tenancy.domain.role import BUILT_IN_ROLES, Role
from services.tenancy.usecases import roles as usecases

router = APIRouter(prefix="/api/v1", tags=["roles"], route_class=IdempotentRoute)

Patterns = Annotated[
    list[Annotated[str, Field(max_length=64)]],
    Field(min_length=1, max_length=100, examples=[["alerts:*", "devices:read"]]),
]


class RoleChange(Body):
    """What a role is to be."""

    description: Annotated[str, Field(max_length=1000, examples=["Answers alerts at night."])] = ""
    permissions: Patterns


class RoleAmendment(Body):
    """What is to change of a role; what is left out stays."""

    description: Annotated[str, Field(max_length=1000)] | None = None
    permissions: Patterns | None = None


class RoleIn(RoleChange):
    """A role to make."""

    name: Annotated[str, Field(max_length=64, examples=["night-shift"])]


class RoleOut(Out):
    """A role. A built-in one is the same in every tenant and cannot be changed."""

    name: Annotated[str, Field(examples=["night-shift"])]
    description: Annotated[str, Field(examples=["Answers alerts at night."])]
    permissions: Annotated[list[str], Field(examples=[["alerts:*", "devices:read"]])]
    is_built_in: bool


class OperationOut(Out):
    """An operation of the API, by the template of its path."""

    method: Annotated[str, Field(examples=["POST"])]
    path: Annotated[str, Field(examples=["/api/v1/alerts/{alert_id}/acknowledge"])]


class PermissionOut(Out):
    """A permission, what it lets one do, and the operations that need it."""

    name: Annotated[str, Field(examples=["alerts:acknowledge"])]
    description: Annotated[str, Field(examples=["Take ownership of an alert; add notes."])]
    operations: list[OperationOut]


@router.get("/permissions")
async def list_permissions(who: CanReadRoles) -> Page[PermissionOut]:
    """List every permission that a role may hold. All come on one page."""
    return Page(
        items=[
            PermissionOut(
                name=name,
                description=does,
                operations=[OperationOut.model_validate(o) for o in needing(name)],
            )
            for name, does in PERMISSIONS.items()
        ],
        next_cursor=None,
    )


@router.get("/roles")
async def list_roles(who: CanReadRoles, store: InTransaction) -> Page[RoleOut]:
    """List the built-in roles and the tenant's own. All come on one page."""
    roles = [*BUILT_IN_ROLES, *await store.roles.all()]
    return Page(items=[RoleOut.model_validate(role) for role in roles], next_cursor=None)


@router.post("/roles", status_code=201, responses=problems(Conflict, Forbidden))
async def create_role(body: RoleIn, who: CanWriteRoles, store: InTransaction, now: Now) -> RoleOut:
    """Make a role of the tenant's own, which may do no more than you may."""
    role = _role(body.name, body)
    await usecases.create(store, role, held=who.permissions, at=now)
    return RoleOut.model_validate(role)


@router.put("/roles/{name}", responses=problems(NotFound, Conflict, Forbidden))
async def change_role(
    name: Annotated[str, Path(max_length=64)],
    body: RoleChange,
    who: CanWriteRoles,
    store: InTransaction,
    now: Now,
) -> RoleOut:
    """Change what one of the tenant's own roles permits, for all who have it."""
    role = _role(name, body)
    await usecases.change(store, role, held=who.permissions, at=now)
    return RoleOut.model_validate(role)


@router.patch("/roles/{name}", responses=problems(NotFound, Conflict, Forbidden))
async def amend_role(
    name: Annotated[str, Path(max_length=64)],
    body: RoleAmendment,
    who: CanWriteRoles,
    store: InTransaction,
    now: Now,
) -> RoleOut:
    """Change what is given of one of the tenant's own roles, for all who have it."""
    role = await usecases.amend(
        store,
        name,
        description=body.description,
        permissions=None if body.permissions is None else _distinct(body.permissions),
        held=who.permissions,
        at=now,
    )
    return RoleOut.model_validate(role)


@router.delete("/roles/{name}", status_code=204, responses=problems(NotFound, Conflict, Forbidden))
async def remove_role(
    name: Annotated[str, Path(max_length=64)],
    who: CanWriteRoles,
    store: InTransaction,
    now: Now,
) -> Response:
    """Remove one of the tenant's own roles, which nobody has any more."""
    await usecases.remove(store, name, held=who.permissions, at=now)
    return Response(status_code=204)


def _role(name: str, body: RoleChange) -> Role:
    return Role(name, body.description, _distinct(body.permissions), is_built_in=False)


def _distinct(patterns: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(patterns))
