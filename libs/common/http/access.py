"""Who may call an operation: every one declares a permission or says why it is public."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar, cast

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import solve_dependencies
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Mount

from libs.common.errors import AppError

_PUBLIC = "__public_because__"

E = TypeVar("E", bound=Callable[..., object])


class UndeclaredAccess(Exception):
    """An operation neither declares a permission nor is marked public, so the service may not start."""


def public(reason: str) -> Callable[[E], E]:
    """Mark an endpoint (or an ASGI app that is mounted) as open to anyone, and say why."""
    if not reason.strip():
        raise ValueError("say why the operation is public")

    def mark(endpoint: E) -> E:
        setattr(endpoint, _PUBLIC, reason)
        return endpoint

    return mark


def public_reason(endpoint: object) -> str | None:
    """Return why the endpoint is public, or None if it is not."""
    reason: str | None = getattr(endpoint, _PUBLIC, None)
    return reason


def declared_permission(route: BaseRoute | RouteContext) -> str | None:
    """Return the permission a route asks for, or None.

    A permission is a dependency, at any depth, whose callable has a text attribute `permission`.
    Several are joined by a blank, in order: all of them are needed.
    """
    dependant: Dependant | None = getattr(route, "dependant", None)
    if dependant is None:
        return None
    return " ".join(dict.fromkeys(_permissions(dependant))) or None


def asks_permission(dependant: Dependant) -> bool:
    """Whether a dependency, or one that it depends on, asks for a permission."""
    return any(True for _ in _permissions(dependant))


async def refusal_of(request: Request) -> AppError | None:
    """Return why whoever asks may not ask this at all; None if they may, or nothing is asked of them.

    FastAPI reads the body before it looks at dependencies. Who may not call an operation is told so
    whatever is wrong with what they sent, and learns nothing of what it takes.
    """
    dependant: Dependant | None = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return None
    async with AsyncExitStack() as stack:
        for _, guard in _guards(dependant):
            try:
                solved = await solve_dependencies(
                    request=request,
                    dependant=guard,
                    async_exit_stack=stack,
                    embed_body_fields=False,
                )
                await cast(Callable[..., Awaitable[object]], guard.call)(**solved.values)
            except AppError as refusal:
                return refusal
    return None


def _permissions(dependant: Dependant) -> Iterator[str]:
    for permission, _ in _guards(dependant):
        yield permission


def _guards(dependant: Dependant) -> Iterator[tuple[str, Dependant]]:
    """Return the dependencies, at any depth, that ask for a permission, and for which."""
    permission = getattr(dependant.call, "permission", None)
    if isinstance(permission, str) and permission:
        yield permission, dependant
    for inner in dependant.dependencies:
        yield from _guards(inner)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as a client sees it: the path with the prefixes of all its routers."""

    path: str
    name: str
    methods: frozenset[str]
    permission: str | None
    public_because: str | None
    route: BaseRoute
    in_schema: bool


def operations_of(routes: Sequence[BaseRoute]) -> list[Operation]:
    """Return all operations below the routes: HTTP, WebSocket and mounted apps."""
    operations = []
    for context in iter_route_contexts(routes):
        route = context.original_route
        endpoint = route.app if isinstance(route, Mount) else context.endpoint
        operations.append(
            Operation(
                path=context.path_format or context.path or "",
                name=context.name or "",
                methods=frozenset(context.methods or ()),
                permission=declared_permission(context),
                public_because=public_reason(endpoint),
                route=route,
                in_schema=bool(getattr(context, "include_in_schema", False)),
            )
        )
    return operations


def check_access(operations: Sequence[Operation]) -> None:
    """Raise UndeclaredAccess naming every operation that is neither guarded nor public."""
    open_ones = [
        f"{' '.join(sorted(o.methods)) or 'ANY'} {o.path} ({o.name})"
        for o in operations
        if o.permission is None and o.public_because is None
    ]
    if open_ones:
        raise UndeclaredAccess("neither a permission nor @public(reason): " + ", ".join(open_ones))
