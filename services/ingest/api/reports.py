"""What a device says of itself over HTTP: an alarm of its own, its status."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.errors import (
    Invalid,
    Malformed,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from libs.common.http.doors import Now
from libs.common.http.problems import REQUEST_ID, problem_response, problems
from libs.common.http.schemas import Body
from services.ingest.api.deps import TheDevice
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Status
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.report import TooManyReports

router = APIRouter(prefix="/api/v1/devices/me", tags=["devices"])

_FAULTS = problems(
    Malformed, Unauthenticated, TooLarge, UnsupportedMedia, Invalid, TooManyRequests, Unavailable
)
_NO_NUL = r"^[^\x00]*$"


class AlarmIn(Body):
    """An alarm of the device's own."""

    message: Annotated[
        str, Field(min_length=1, max_length=1000, pattern=_NO_NUL, examples=["Oil pressure is low"])
    ]
    severity: Literal["critical", "high", "medium", "low", "info"] = "medium"
    key: Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_NUL)] = "device"
    """The same key again is the same alarm."""
    active: bool = True
    """False says that it is over."""


class StatusIn(Body):
    """The device's status, in its own words."""

    status: Status
    reason: Annotated[str, Field(max_length=500, pattern=_NO_NUL, examples=["maintenance"])] = ""


@router.post("/alerts", status_code=204, responses=_FAULTS)
async def report_alarm(request: Request, device: TheDevice, body: AlarmIn, now: Now) -> Response:
    """Take an alarm of the device's own, which opens an alert, or ends it. Said again it is the same."""
    return await _take(request, device, Channel.ALERTS, body, now)


@router.post("/status", status_code=204, responses=_FAULTS)
async def report_status(request: Request, device: TheDevice, body: StatusIn, now: Now) -> Response:
    """Take the device's status. It stands on its page until it, or its connection, says another."""
    return await _take(request, device, Channel.STATUS, body, now)


async def _take(
    request: Request, device: TheDevice, channel: Channel, body: Body, now: Now
) -> Response:
    reception = request.app.state.reception
    reception.met(device, Protocol.HTTP, PayloadFormat.JSON)
    await reception.reports.take(device, channel, body.model_dump_json().encode(), now)
    return Response(status_code=204)


async def on_too_many_reports(request: Request, error: Exception) -> Response:
    """Answer a device that reports too much. It is told, so that nothing of it needs a quarantine."""
    assert isinstance(error, TooManyReports)
    later = TooManyRequests(error.detail, retry_after_s=error.retry_after_s)
    return problem_response(later, request.scope.get(REQUEST_ID))
