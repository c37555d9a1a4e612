"""Every error, whatever its source, has the one shape that clients are promised."""

from collections.abc import AsyncIterator
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request

from libs.common import errors
from libs.common.errors import AppError
from libs.common.http.access import public
from libs.common.http.app import create_app
from libs.common.http.problems import MEDIA_TYPE, Problem, send_problem
from libs.common.http.schemas import Body

# Other tests have kinds of their own.
KINDS = {
    kind.slug: kind for kind in AppError.__subclasses__() if kind.__module__ == AppError.__module__
}

STATUSES = {
    "malformed": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-found": 404,
    "conflict": 409,
    "precondition-failed": 412,
    "too-large": 413,
    "unsupported-media-type": 415,
    "invalid": 422,
    "too-many-requests": 429,
    "unavailable": 503,
}


class Setpoint(Body):
    value: float


router = APIRouter()


@router.get("/fails/{kind}")
@public("a test")
async def fail(kind: str) -> None:
    raise KINDS[kind]("it went wrong", errors=[errors.FieldError("#/a", "because")])


@router.get("/breaks")
@public("a test")
async def break_down(limit: Annotated[int, Query(ge=1)] = 1) -> None:
    raise RuntimeError("inner secrets at /srv/app.py")


@router.put("/setpoint")
@public("a test")
async def set_point(setpoint: Setpoint) -> None: ...


class Keeper:
    """Lets pass who shows the keeper's badge."""

    permission = "setpoints:write"

    async def __call__(self, request: Request) -> None:
        badge = request.headers.get("badge")
        if badge is None:
            raise errors.Unauthenticated("show a badge")
        if badge != "keeper":
            raise errors.Forbidden("this is the keeper's")


@router.put("/kept/{place}", max_body_size=900)
async def keep(
    place: int, setpoint: Setpoint, who: Annotated[None, Depends(Keeper())], limit: int = 1
) -> None: ...


@pytest.fixture
def app() -> FastAPI:
    return create_app("demo", version="1", routers=[router], max_body_bytes=1000)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://demo") as client:
        yield client


def assert_problem(response: httpx2.Response, status: int, slug: str) -> Problem:
    assert response.status_code == status
    assert response.headers["content-type"] == MEDIA_TYPE
    body = response.json()
    assert list(body) == ["type", "title", "status", "detail", "errors", "request_id"]
    problem = Problem.model_validate(body, strict=True)
    assert problem.type == f"urn:iiot:problem:{slug}"
    assert problem.status == status
    assert problem.title
    assert problem.detail
    assert problem.request_id == response.headers["x-request-id"]
    return problem


def test_every_kind_of_error_is_promised_a_status() -> None:
    assert {slug: kind.status for slug, kind in KINDS.items()} == STATUSES


@pytest.mark.parametrize(("slug", "status"), STATUSES.items())
async def test_a_kind_raised_in_a_route(client: httpx2.AsyncClient, slug: str, status: int) -> None:
    response = await client.get(f"/fails/{slug}")
    problem = assert_problem(response, status, slug)
    assert problem.detail == "it went wrong"
    assert [(e.pointer, e.reason) for e in problem.errors] == [("#/a", "because")]
    assert ("retry-after" in response.headers) == (status in {429, 503})
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize(
    ("method", "path", "content", "content_type", "status", "slug"),
    [
        ("GET", "/nowhere", b"", "", 404, "not-found"),
        ("GET", "/breaks/", b"", "", 404, "not-found"),
        ("DELETE", "/breaks", b"", "", 405, "method-not-allowed"),
        ("GET", "/breaks", b"", "", 500, "internal"),
        ("GET", "/breaks?limit=0", b"", "", 422, "invalid"),
        ("GET", "/breaks?limit=%00", b"", "", 422, "invalid"),
        ("GET", "/fails/%00", b"", "", 404, "not-found"),
        ("PUT", "/setpoint", b"", "application/json", 422, "invalid"),
        ("PUT", "/setpoint", b"{", "application/json", 400, "malformed"),
        ("PUT", "/setpoint", b'{"value":1}', "text/plain", 415, "unsupported-media-type"),
        ("PUT", "/setpoint", b'{"value":1}', "", 415, "unsupported-media-type"),
        ("PUT", "/setpoint", b'{"value":NaN}', "application/json", 422, "invalid"),
        ("PUT", "/setpoint", b" " * 1_048_577, "application/json", 413, "too-large"),
    ],
)
async def test_what_no_route_raised(
    client: httpx2.AsyncClient,
    method: str,
    path: str,
    content: bytes,
    content_type: str,
    status: int,
    slug: str,
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await client.request(method, path, content=content, headers=headers)
    assert_problem(response, status, slug)


async def test_a_raw_asgi_app_says_its_errors_alike(app: FastAPI) -> None:
    @public("a test")
    async def raw(scope, receive, send):  # type: ignore[no-untyped-def]  # ASGI's own loose types
        await send_problem(scope, receive, send, errors.Unavailable("no upstream"))

    app.mount("/raw", raw)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://demo") as client:
        assert_problem(await client.get("/raw/x"), 503, "unavailable")


def test_openapi_promises_the_shape_for_every_operation(app: FastAPI) -> None:
    document = app.openapi()
    promised = {"$ref": "#/components/schemas/Problem"}
    for path in document["paths"].values():
        for operation in path.values():
            problems = {s: r for s, r in operation["responses"].items() if s[0] in "45"}
            assert {"400", "422"} <= problems.keys()
            for status, response in problems.items():
                content = response["content"][MEDIA_TYPE]
                assert content["schema"] == promised
                for example in content["examples"].values():
                    assert Problem.model_validate(example["value"]).status == int(status)
    assert set(document["components"]["schemas"]["Problem"]["required"]) == set(
        Problem.model_fields
    )
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status"),
    [
        ("/kept/1", b"{", "application/json", 400),
        ("/kept/1", b'{"value": NaN}', "application/json", 422),
        ("/kept/1", b'{"valve": 1}', "application/json", 422),
        ("/kept/1", b'{"value": 1}', "text/plain", 415),
        ("/kept/1", b" " * 1001, "application/json", 413),
        ("/kept/1", b" " * 901, "application/json", 413),
        ("/kept/here", b'{"value": 1}', "application/json", 422),
        ("/kept/1?limit=x", b'{"value": 1}', "application/json", 422),
    ],
)
async def test_who_may_not_ask_is_told_that_whatever_else_is_wrong(
    client: httpx2.AsyncClient, path: str, body: bytes, content_type: str, status: int
) -> None:
    async def put(**headers: str) -> httpx2.Response:
        sent = {"content-type": content_type, **headers}
        return await client.put(path, content=body, headers=sent)

    assert (await put(badge="keeper")).status_code == status
    for refused in (
        assert_problem(await put(badge="visitor"), 403, "forbidden"),
        assert_problem(await put(), 401, "unauthenticated"),
    ):
        assert refused.errors == []
