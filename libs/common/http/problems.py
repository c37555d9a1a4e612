"""Errors as RFC 9457 `application/problem+json`, in one shape for everything that can go wrong.

`errors[].pointer` says where:
    #/values/temp    in the body: a JSON pointer as a URI fragment (RFC 6901, section 6)
    ?from            a query parameter
    {device_id}      a parameter of the path
    If-Match:        a header
    Cookie:session   a cookie
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from libs.common import log
from libs.common.errors import (
    AppError,
    FieldError,
    Invalid,
    Malformed,
    TooLarge,
    UnsupportedMedia,
)
from libs.common.http.access import refusal_of

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "iiot.request_id"
"""The key of the ASGI scope under which the request's id stands."""

DEFAULT_RETRY_AFTER_S = 5
_IN_WHAT_WAS_SENT = {kind.status for kind in (Malformed, TooLarge, UnsupportedMedia, Invalid)}
MAX_ERRORS = 100

_SOME_REQUEST = "9f2d7c0a4be14d0f8a7b6c5d4e3f2a1b"
_EXAMPLES: Mapping[str, tuple[str, Sequence[FieldError]]] = {
    "malformed": ("The body is not JSON: Expecting value at character 9 (line 1, column 10).", ()),
    "unauthenticated": ("no credential was given", ()),
    "forbidden": ("this needs the permission devices:write", ()),
    "not-found": ("no device 5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10", ()),
    "conflict": ("there is a device named press-7 already", ()),
    "precondition-failed": ("it is at version 4 by now", ()),
    "too-large": ("The body is larger than 1048576 bytes.", ()),
    "unsupported-media-type": ("Send the body as application/json.", ()),
    "invalid": (
        "#/name: String should have at least 1 character",
        [FieldError("#/name", "String should have at least 1 character")],
    ),
    "too-many-requests": ("the limit of 1000 requests a minute is reached", ()),
    "unavailable": ("the service is away; try again", ()),
}
"""What the kinds of libs/common/errors look like to who asked for a press. Others show what they promise."""

_log = log.logger(__name__)


class ProblemField(BaseModel):
    """One fault in the input."""

    pointer: Annotated[str, Field(description="Where: `#/a/b` in the body, `?name` in the query, `{name}` in the path, `Name:` in the headers.", examples=["#/values/temp"])]  # fmt: skip
    reason: Annotated[str, Field(description="What is wrong there.", examples=["Input should be a finite number"])]  # fmt: skip


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: Annotated[str, Field(description="Stable name of the kind of error.", examples=["urn:iiot:problem:not-found"])]  # fmt: skip
    title: Annotated[str, Field(description="The kind, for people.", examples=["Not found"])]
    status: Annotated[int, Field(description="The HTTP status.", ge=400, le=599, examples=[404])]
    detail: Annotated[str, Field(description="What happened this time.", examples=["no device 5f0c1d3e-8a47-4b0c-9d55-2f6f8f6f3a10"])]  # fmt: skip
    errors: Annotated[list[ProblemField], Field(description="The faults in the input, if there are any.")]  # fmt: skip
    request_id: Annotated[str | None, Field(description="Quote it when you ask for help; it stands in our logs.", examples=["9f2d7c0a4be14d0f8a7b6c5d4e3f2a1b"])]  # fmt: skip


PROBLEM_SCHEMA = {"schema": {"$ref": "#/components/schemas/Problem"}}


class Refused(HTTPException):
    """An AppError raised where only Starlette's own exceptions pass untouched (reading the body)."""

    def __init__(self, error: AppError) -> None:
        super().__init__(error.status, error.detail)
        self.error = error


def problems(*kinds: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may fail with these kinds, an example of each in it."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        response = responses.setdefault(kind.status, _promise(kind.status))
        response["content"][MEDIA_TYPE]["examples"][kind.__name__] = {
            "summary": kind.title,
            "value": example_of(kind),
        }
    for response in responses.values():
        examples = response["content"][MEDIA_TYPE]["examples"].values()
        response["description"] = " / ".join(dict.fromkeys(e["summary"] for e in examples))
    return responses


PROBLEM_HEADERS: dict[str, dict[str, Any]] = {
    "RetryAfter": {
        "description": "How many seconds to wait before it is worth asking again.",
        "schema": {"type": "integer", "minimum": 1},
        "example": DEFAULT_RETRY_AFTER_S,
    },
    "WwwAuthenticate": {
        "description": "Which credential is asked for.",
        "schema": {"type": "string"},
        "example": "Bearer",
    },
    "RequestId": {
        "description": "Names this request in our logs; your own `X-Request-Id` if you sent one.",
        "schema": {"type": "string"},
        "example": _SOME_REQUEST,
    },
}
"""What the headers of problems mean, for OpenAPI's `components`."""


def _promise(status: int) -> dict[str, Any]:
    named = {"X-Request-Id": "RequestId"}
    if status in (429, 503):
        named["Retry-After"] = "RetryAfter"
    if status == 401:
        named["WWW-Authenticate"] = "WwwAuthenticate"
    return {
        "headers": {n: {"$ref": f"#/components/headers/{to}"} for n, to in named.items()},
        "content": {MEDIA_TYPE: {**PROBLEM_SCHEMA, "examples": {}}},
    }


def example_of(kind: type[AppError]) -> dict[str, Any]:
    """Return a problem of this kind, as one might see it."""
    detail, errors = _EXAMPLES.get(kind.slug, (kind.__doc__ or kind.title, ()))
    return {
        "type": f"urn:iiot:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "errors": [{"pointer": e.pointer, "reason": e.reason} for e in errors],
        "request_id": _SOME_REQUEST,
    }


def problem_schemas() -> dict[str, object]:
    """Return the JSON schemas of Problem and its parts for OpenAPI's `components`."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, object] = schema.pop("$defs", {})
    return {"Problem": schema, **parts}


def problem_response(error: AppError, request_id: str | None) -> Response:
    """Return the answer that says this error."""
    return _respond(
        status=error.status,
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        errors=error.errors,
        request_id=request_id,
        headers=_headers_of(error),
    )


async def send_problem(scope: Scope, receive: Receive, send: Send, error: AppError) -> None:
    """Answer a request, or a WebSocket's handshake, with this error, for raw ASGI apps."""
    # Starlette speaks the handshake's own dialect by itself, from the scope's type.
    await problem_response(error, scope.get(REQUEST_ID))(scope, receive, send)


def internal_error(request_id: str | None) -> Response:
    """Return the 500 that tells nothing but the request's id."""
    return _respond(
        status=500,
        slug="internal",
        title="Internal error",
        detail="Something went wrong on our side; it was logged under this request id.",
        errors=(),
        request_id=request_id,
        headers={},
    )


def _headers_of(error: AppError) -> dict[str, str]:
    if error.status in (429, 503):
        wait_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        return {"retry-after": str(max(1, math.ceil(wait_s)))}
    if error.status == 413:
        # The rest of the body is not wanted; without this it would be read to its end.
        return {"connection": "close"}
    if error.status == 401:
        return {"www-authenticate": "Bearer"}
    return {}


def _respond(
    *,
    status: int,
    slug: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError],
    request_id: str | None,
    headers: Mapping[str, str],
) -> Response:
    body = {
        "type": f"urn:iiot:problem:{slug}",
        "title": title,
        "status": status,
        "detail": _sendable(detail),
        "errors": [
            {"pointer": _sendable(e.pointer), "reason": _sendable(e.reason)}
            for e in errors[:MAX_ERRORS]
        ],
        "request_id": request_id,
    }
    return Response(
        msgspec.json.encode(body), status_code=status, headers=headers, media_type=MEDIA_TYPE
    )


def _sendable(text: str) -> str:
    """Return the text without lone surrogates, which an input may hold and UTF-8 may not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def add_problem_handlers(app: FastAPI) -> None:
    """Let the app answer AppErrors, faults in requests, and Starlette's 404 and 405 as problems."""
    app.add_exception_handler(AppError, _on_app_error)  # type: ignore[arg-type]  # Starlette's type knows no handler for both kinds of connection
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, on_http_exception)


async def _on_app_error(connection: Request | WebSocket, exc: Exception) -> Response | None:
    assert isinstance(exc, AppError)
    if exc.status >= 500:
        _log.warning("request failed", kind=exc.slug, detail=exc.detail, cause=exc.__cause__)
    if isinstance(connection, WebSocket):
        # The 4000s are an application's own: 4401, 4404 and so on read like their HTTP kin.
        await connection.close(code=4000 + exc.status, reason=exc.title)
        return None
    return await _fault(connection, exc)


async def _on_validation_error(request: Request | WebSocket, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    assert isinstance(request, Request)
    return await _fault(request, kind_of_fault(exc))


async def _fault(request: Request, error: AppError) -> Response:
    """Answer with an error; if it lies in what was sent, only to who may ask at all."""
    said = error
    if error.status in _IN_WHAT_WAS_SENT:
        said = await refusal_of(request) or error
    response = problem_response(said, request.scope.get(REQUEST_ID))
    if error.status == TooLarge.status:
        # Whatever is said: the rest of the body is not wanted.
        response.headers["connection"] = "close"
    return response


async def on_http_exception(request: Request | WebSocket, exc: Exception) -> Response:
    """Answer an exception of Starlette's own, such as the 404 of an unknown path."""
    assert isinstance(exc, HTTPException)
    request_id = request.scope.get(REQUEST_ID)
    if isinstance(exc, Refused):
        assert isinstance(request, Request)
        return await _fault(request, exc.error)
    if exc.status_code < 400:
        return Response(status_code=exc.status_code, headers=exc.headers)
    phrase = _phrase(exc.status_code)
    kind = _KINDS.get(exc.status_code)
    return _respond(
        status=exc.status_code,
        slug=kind.slug if kind else phrase.lower().replace(" ", "-"),
        title=kind.title if kind else phrase,
        detail=_DETAILS.get(exc.status_code) or str(exc.detail),
        errors=(),
        request_id=request_id,
        headers=dict(exc.headers or {}),
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_KINDS = {kind.status: kind for kind in AppError.__subclasses__()}
_DETAILS = {404: "There is nothing at this path.", 405: "This path does not take this method."}


def kind_of_fault(exc: RequestValidationError) -> AppError:
    """Return the error that FastAPI's validation stands for: Malformed, UnsupportedMedia or Invalid."""
    faults = exc.errors()
    for fault in faults:
        if fault["type"] == "json_invalid":
            reason = fault.get("ctx", {}).get("error", "cannot be parsed")
            return Malformed(f"The body is not JSON: {reason} at character {fault['loc'][-1]}.")
    # FastAPI hands the bytes on as they are when the content type is not JSON.
    if isinstance(exc.body, bytes):
        return UnsupportedMedia("Send the body as application/json.")
    errors: list[FieldError] = []
    for fault in faults[:MAX_ERRORS]:
        error = FieldError(_pointer(fault["loc"], exc.body, fault["type"]), _reason(fault["msg"]))
        if error not in errors:
            errors.append(error)
    if len(errors) == 1:
        return Invalid(f"{errors[0].pointer}: {errors[0].reason}", errors=errors)
    return Invalid(f"The request has {len(faults)} faults.", errors=errors)


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _pointer(loc: Sequence[str | int], body: Any, fault: str) -> str:
    where, *names = loc
    match where:
        case "query":
            return f"?{names[0]}" if names else "?"
        case "path":
            return f"{{{names[0]}}}" if names else "{}"
        case "header":
            return f"{_header_name(str(names[0]))}:" if names else ":"
        case "cookie":
            return f"Cookie:{names[0]}" if names else "Cookie:"
        case _:
            return body_pointer(_steps(names, body, fault))


def _header_name(name: str) -> str:
    return "-".join(part.capitalize() for part in name.replace("_", "-").split("-"))


def _steps(names: Sequence[str | int], body: Any, fault: str) -> list[str | int]:
    """Keep of pydantic's location what is really in the body.

    Between the fields pydantic names the branches of unions and the kinds of validators it went
    through; a client knows none of them. A field that is missing is named although it is not there.
    """
    steps: list[str | int] = []
    here = body
    for position, name in enumerate(names):
        is_key = isinstance(here, dict) and name in here
        is_position = isinstance(here, list) and isinstance(name, int) and name < len(here)
        if is_key or is_position:
            steps.append(name)
            here = here[name]
        elif fault == "missing" and position == len(names) - 1:
            steps.append(name)
    return steps


def body_pointer(steps: Sequence[str | int]) -> str:
    """Return the pointer to a place in the body: keys and positions from the top down."""
    return "#" + "".join(
        "/" + quote(str(step).replace("~", "~0").replace("/", "~1"), safe="!$&'()*+,;=:@~", errors="replace")
        for step in steps
    )  # fmt: skip
