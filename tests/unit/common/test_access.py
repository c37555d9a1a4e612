from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket

from libs.common.http.access import UndeclaredAccess, check_access, operations_of, public


class Needs:
    """Stands for the real permission dependency: all that counts is the attribute."""

    def __init__(self, permission: str) -> None:
        self.permission = permission

    async def __call__(self) -> str:
        return "somebody"


CanRead = Annotated[str, Depends(Needs("alerts:read"))]


async def through_another(who: CanRead) -> str:
    return who


def permissions_of(router: APIRouter) -> dict[str, str | None]:
    app = FastAPI(openapi_url=None)
    app.include_router(router, prefix="/v1")
    return {o.path: o.permission for o in operations_of(app.routes)}


def test_a_permission_is_found_on_the_route_its_router_and_below_other_dependencies() -> None:
    router = APIRouter()

    @router.get("/direct")
    async def direct(who: CanRead) -> None: ...

    @router.get("/deep")
    async def deep(who: Annotated[str, Depends(through_another)]) -> None: ...

    @router.websocket("/live")
    async def live(socket: WebSocket, who: CanRead) -> None: ...

    guarded = APIRouter(prefix="/guarded", dependencies=[Depends(Needs("admin:all"))])

    @guarded.get("/both")
    async def both(who: CanRead) -> None: ...

    router.include_router(guarded)
    assert permissions_of(router) == {
        "/v1/direct": "alerts:read",
        "/v1/deep": "alerts:read",
        "/v1/live": "alerts:read",
        "/v1/guarded/both": "admin:all alerts:read",
    }


@pytest.mark.parametrize("kind", ["route", "websocket", "mount"])
def test_an_operation_of_undeclared_access_is_named(kind: str) -> None:
    app = FastAPI(openapi_url=None)

    async def forgotten() -> None: ...

    async def forgotten_socket(socket: WebSocket) -> None: ...

    if kind == "route":
        app.get("/forgotten")(forgotten)
    elif kind == "websocket":
        app.websocket("/forgotten")(forgotten_socket)
    else:
        app.mount("/forgotten", FastAPI(openapi_url=None))
    with pytest.raises(UndeclaredAccess, match="/forgotten"):
        check_access(operations_of(app.routes))


def test_public_is_allowed_with_a_reason_and_not_without() -> None:
    app = FastAPI(openapi_url=None)

    @app.get("/keys")
    @public("anyone may verify our tokens")
    async def keys() -> None: ...

    check_access(operations_of(app.routes))
    assert operations_of(app.routes)[0].public_because == "anyone may verify our tokens"
    with pytest.raises(ValueError, match="why"):
        public(" ")
