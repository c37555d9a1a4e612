"""The one place where a service's HTTP app is made, so that all of them behave alike."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan

from libs.common.http.access import Operation, check_access, operations_of, public
from libs.common.http.doorway import Doorway
from libs.common.http.health import Check, Health
from libs.common.http.idempotency import check_repeats
from libs.common.http.metrics import Metrics
from libs.common.http.openapi import complete
from libs.common.http.problems import (
    MEDIA_TYPE,
    PROBLEM_SCHEMA,
    add_problem_handlers,
    on_http_exception,
)

MAX_BODY_BYTES = 1024 * 1024

_OPENAPI_URL = "/openapi.json"

# Keeps FastAPI from describing errors in its own shape; `complete` puts those there are in its place.
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "Any error", "content": {MEDIA_TYPE: PROBLEM_SCHEMA}}
}

_SERVED = "__served_as__"


class DuplicateOperation(Exception):
    """Two operations of a service have the same name, which is their id in OpenAPI."""


class ServiceApp(FastAPI):
    """A FastAPI app that will not serve an operation of undeclared access, or one unsafe to repeat."""

    service: str
    metrics: Metrics
    health: Health
    templates: dict[int, str]
    methods: dict[str, set[str]]

    def build_middleware_stack(self) -> ASGIApp:
        """Look at the routes once more before the first request: some may have come late."""
        self.inspect_routes()
        return super().build_middleware_stack()

    def inspect_routes(self) -> list[Operation]:
        """Return all operations. Raises UndeclaredAccess, UnsafeRepeat and DuplicateOperation."""
        operations = operations_of(self.routes)
        check_access(operations)
        check_repeats(operations)
        seen: dict[str, str] = {}
        for operation in operations:
            name = str(getattr(operation.route, "operation_id", None) or operation.name)
            if operation.in_schema and seen.setdefault(name, operation.path) != operation.path:
                raise DuplicateOperation(f"{name}: {seen[name]} and {operation.path}")
            self.methods.setdefault(operation.path, set()).update(operation.methods)
            for subject in (
                operation.route,
                getattr(operation.route, "endpoint", None),
                getattr(operation.route, "app", None),
            ):
                if subject is not None:
                    self.templates[id(subject)] = operation.path
        return operations

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document, completed with what `complete` knows."""
        if self.openapi_schema is None:
            document = copy.deepcopy(super().openapi())
            complete(document, self.inspect_routes())
            self.openapi_schema = document
        return self.openapi_schema


def create_app(
    service: str,
    *,
    version: str,
    routers: Sequence[APIRouter] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    metrics: Metrics | None = None,
    checks: Mapping[str, Check] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    title: str | None = None,
    description: str = "",
) -> ServiceApp:
    """Return a service's app: its routers, and what every service has.

    That is: errors as problems, request id and trace, one log line a request, the limit of bodies
    (a route may set its own with `max_body_size=`), strict JSON, `/health/live`, `/health/ready`
    (the `checks`, and those added to `app.health` later), `/metrics`, `/openapi.json`.
    `metrics` is given where several services share one registry.
    Raises UndeclaredAccess if an operation neither depends on a permission nor is `@public`,
    UnsafeRepeat if one creates and neither takes an Idempotency-Key nor is `@repeatable`, and
    DuplicateOperation if two have the same function name.
    A router is made ready once for all apps of the process that serve it: an app's
    `dependency_overrides` do not reach it.
    """
    app = ServiceApp(
        title=title or service,
        version=version,
        description=description,
        lifespan=cast(Lifespan[FastAPI] | None, lifespan),
        openapi_url=_OPENAPI_URL,
        # Their pages load scripts from elsewhere; the console has its own.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Metrics, logs and traces are our own (Doorway). FastAPI's would look into the environment
        # for providers at each request.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        generate_unique_id_function=_operation_id,
        responses=_RESPONSES,
    )
    app.service = service
    app.metrics = metrics or Metrics()
    app.health = Health()
    app.templates = {}
    app.methods = {}
    for name, check in (checks or {}).items():
        app.health.add(name, check)
    add_problem_handlers(app)
    app.add_exception_handler(405, _name_all_methods)
    app.add_middleware(
        Doorway,
        service=service,
        metrics=app.metrics,
        max_body_bytes=max_body_bytes,
        templates=app.templates,
    )
    for route in app.routes:
        public("it describes the service and holds no tenant's data")(route.endpoint)  # type: ignore[attr-defined]  # FastAPI's own route of the OpenAPI document
    for router in routers:
        app.router.routes.append(_served(router))
    app.router.add_route("/health/live", app.health.live, include_in_schema=False)
    app.router.add_route("/health/ready", app.health.readiness, include_in_schema=False)
    app.router.add_route("/metrics", app.metrics.expose, include_in_schema=False)
    app.inspect_routes()
    return app


def _served(router: APIRouter) -> BaseRoute:
    """Return the router as every app of this process serves it.

    FastAPI derives it from the signatures anew wherever a router is included, which took most of
    the time in which a service is built, and nothing in it is one app's.
    """
    served: BaseRoute | None = vars(router).get(_SERVED)
    if served is None:
        root = APIRouter(generate_unique_id_function=_operation_id, responses=_RESPONSES)
        root.include_router(router)
        (served,) = root.routes
        setattr(router, _SERVED, served)
    return served


async def _name_all_methods(request: Request, exc: Exception) -> Response:
    """Answer 405. Starlette's Allow names the methods of one route; a path may have several."""
    app, route = request.app, request.scope.get("route")
    if isinstance(exc, HTTPException) and isinstance(app, ServiceApp):
        methods = app.methods.get(app.templates.get(id(route), ""))
        if methods:
            exc.headers = {"Allow": ", ".join(sorted(methods))}
    return await on_http_exception(request, exc)


def _operation_id(route: APIRoute) -> str:
    return route.name
