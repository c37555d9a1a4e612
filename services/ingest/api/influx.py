"""InfluxDB's write API, so that Telegraf points here unchanged.

Its outputs put `/write` (version 1) or `/api/v2/write` (version 2) behind the URL they are given.
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from libs.common.errors import (
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from libs.common.http.access import public
from libs.common.http.doors import Now
from libs.common.http.problems import problems
from services.ingest.api.deps import MaySend
from services.ingest.api.telemetry import receive
from services.ingest.domain.influx import NS_OF, influx_reader
from services.ingest.domain.payload import Refusal
from services.ingest.domain.protocol import PayloadFormat

router = APIRouter(prefix="/api/v1/telemetry/influx", tags=["telemetry"])

Precision = Annotated[str, Query(max_length=2, description="What times are counted in.")]
DeviceId = Annotated[UUID | None, Query(description="Whose lines without a `device_id` tag are.")]

_LINES = {
    "requestBody": {
        "required": True,
        "content": {
            "text/plain": {
                "schema": {"type": "string"},
                "examples": {
                    "cpu": {"value": "cpu,cpu=cpu0 usage_idle=91.2 1767225600000000000"},
                },
            }
        },
    }
}
_PARTIAL: dict[int | str, dict[str, Any]] = {
    400: {
        "description": "Some lines were refused, and lie in the quarantine; the others are stored.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "code": {"const": "invalid"},
                        "message": {"type": "string"},
                        "error": {"type": "string"},
                    },
                },
                "example": {
                    "code": "invalid",
                    "message": "partial write: line 2: it has no fields",
                    "error": "partial write: line 2: it has no fields",
                },
            }
        },
    }
}


@router.post("/write", status_code=204, response_class=Response, include_in_schema=False)
@router.post("/api/v2/write", status_code=204, response_class=Response, include_in_schema=False)
@router.post(
    "",
    status_code=204,
    response_class=Response,
    openapi_extra=_LINES,
    responses={
        **problems(
            Malformed,
            Unauthenticated,
            Forbidden,
            NotFound,
            TooLarge,
            UnsupportedMedia,
            Invalid,
            TooManyRequests,
            Unavailable,
        ),
        **_PARTIAL,
    },
)
async def write_lines(
    request: Request,
    response: Response,
    sender: MaySend,
    now: Now,
    precision: Precision = "ns",
    device_id: DeviceId = None,
) -> Response:
    """Take lines of InfluxDB's line protocol, as it is or as gzip.

    204: all are durable. 400 with `partial write`: so are the good ones, and the others lie in the
    quarantine with their reasons, so that they need not be sent again.
    """
    if precision not in NS_OF:
        return _invalid(f"precision is one of {', '.join(NS_OF)}")
    read = influx_reader(precision)
    taken = await receive(request, response, sender, device_id, PayloadFormat.INFLUX, read, now)
    answer = _partial(taken.refused) if taken.refused else Response(status_code=204)
    answer.headers.update(response.headers)
    return answer


@router.post("/query", include_in_schema=False)
async def query(request: Request, sender: MaySend) -> JSONResponse:
    """Answer Telegraf, which creates its database first, that it is there; and nothing else."""
    asked = request.query_params.get("q", "")
    if not asked:
        form = (await request.body())[:1024].decode(errors="replace")
        asked = form.partition("q=")[2].replace("+", " ")
    if not asked.lstrip().upper().startswith("CREATE"):
        return _invalid("queries are asked at /api/v1/analytics")
    return JSONResponse({"results": [{"statement_id": 0}]})


@router.api_route(
    "/ping",
    methods=["GET", "HEAD"],
    status_code=204,
    response_class=Response,
    include_in_schema=False,
)
@public("it says that somebody is there, and nothing else")
async def ping() -> Response:
    """Say that this is here."""
    return Response(status_code=204, headers={"X-Influxdb-Version": "2.0-compatible"})


def _partial(refused: list[Refusal]) -> JSONResponse:
    return _invalid(
        f"partial write: {len(refused)} refused and kept in the quarantine, the first: "
        f"{refused[0].reason}: {refused[0].detail}"
    )


def _invalid(message: str) -> JSONResponse:
    """Return the error as both versions of InfluxDB's clients look for it."""
    return JSONResponse({"code": "invalid", "message": message, "error": message}, status_code=400)
