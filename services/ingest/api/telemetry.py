"""Telemetry over HTTP, and the quarantine."""

import asyncio
import base64
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response

from libs.common.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from libs.common.http.doors import Now
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from services.ingest.api.deps import (
    CanReadTelemetry,
    CanWriteTelemetry,
    InTransaction,
    MaySend,
    Sender,
)
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.payload import (
    MOST_READINGS,
    Decoded,
    Refusal,
    Window,
    decode_readings,
    parse_json,
)
from services.ingest.usecases.telemetry import accept

router = APIRouter(prefix="/api/v1/telemetry", tags=["telemetry"])


class RejectedOut(Out):
    """A point that was not taken. It lies in the quarantine, with its reason."""

    index: int
    """Which reading of the request, counted from 0."""
    metric: str | None
    reason: str
    detail: str


class Acceptance(Out):
    """What became of the points of a request, all of which are durable."""

    accepted: int
    rejected: list[RejectedOut]


class QuarantinedOut(Out):
    """A message, or a part of one, that could not be stored."""

    id: UUID
    device_id: UUID
    received_at: datetime
    """The time of what has no time of its own."""
    channel: Channel
    """What the message was about."""
    reason: str
    detail: str
    metric: str | None
    size: int
    """How many bytes of the payload are kept."""
    cut_from: int | None
    """How many bytes it had, if only its beginning is kept."""


class QuarantinedWithPayloadOut(QuarantinedOut):
    """An entry of the quarantine with what was sent."""

    payload: str
    """As it came if it is UTF-8, else in base64."""
    encoding: Literal["utf-8", "base64"]


class OverflowOut(Out):
    """How many entries gave way to newer ones, from when to when."""

    dropped: int
    since: datetime
    latest: datetime


class QuarantinePage(Page[QuarantinedOut]):
    """A part of the quarantine."""

    overflow: OverflowOut | None
    """What is no longer there because the quarantine was full; null if nothing ever was dropped."""


class _Position(msgspec.Struct):
    received_at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: UUID


_READING = {
    "type": "object",
    "required": ["values"],
    "additionalProperties": False,
    "properties": {
        "ts": {
            "description": "RFC 3339 with an offset, or milliseconds since 1970; absent: now.",
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}],
        },
        "values": {
            "type": "object",
            "additionalProperties": {"type": ["number", "boolean", "string"]},
            "examples": [{"temp": 21.5}],
        },
        "device_id": {
            "description": "Required of users; a device speaks for itself alone.",
            "type": "string",
            "format": "uuid",
        },
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        _READING,
                        {"type": "array", "items": _READING, "maxItems": MOST_READINGS},
                    ]
                },
                "examples": {
                    "one": {"value": {"values": {"temp": 21.5}}},
                    "many": {
                        "value": [
                            {
                                "ts": "2026-01-31T12:00:00Z",
                                "values": {"temp": 21.5, "running": True},
                            }
                        ]
                    },
                },
            }
        },
    }
}


_CORRECTED = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"type": "object", "examples": [{"values": {"temp": 21.5}}]},
                        {"type": "array", "items": {"type": "object"}, "maxItems": MOST_READINGS},
                    ]
                }
            }
        },
    }
}


@router.post(
    "",
    status_code=202,
    openapi_extra=_BODY,
    responses=problems(
        Malformed,
        Unauthenticated,
        Forbidden,
        NotFound,
        TooLarge,
        UnsupportedMedia,
        Invalid,
        Unavailable,
    ),
)
async def send_telemetry(request: Request, sender: MaySend, now: Now) -> Acceptance:
    """Take readings: one, or a list.

    The answer comes when every point is durable: the good ones on their way to the historian, the
    others in the quarantine, named under `rejected`.
    """
    _check_media_type(request)
    settings = request.app.state.settings
    parsed = parse_json(await request.body())
    readings = parsed if isinstance(parsed, list) else [parsed]
    _check_shape(readings, isinstance(parsed, list))
    window = Window.around(now, past=settings.oldest, ahead=settings.clock_ahead)

    async def take(source: Source, indexes: list[int]) -> tuple[int, list[RejectedOut]]:
        own = [{k: v for k, v in readings[i].items() if k != "device_id"} for i in indexes]
        decoded = decode_readings(own, now, window)
        refusals = await accept(
            request.app.state.intake, source, decoded, within=settings.accept_within
        )
        return _count_accepted(decoded, refusals), [
            RejectedOut(index=indexes[r.index], metric=r.metric, reason=r.reason, detail=r.detail)
            for r in refusals
        ]

    # All devices' points wait for the same batches.
    grouped = await _sources(request, sender, readings)
    taken = await asyncio.gather(*(take(*group) for group in grouped.values()))
    return Acceptance(
        accepted=sum(accepted for accepted, _ in taken),
        rejected=sorted(
            (refused for _, rejected in taken for refused in rejected),
            key=lambda refused: refused.index,
        ),
    )


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMedia("telemetry is sent as application/json")


def _check_shape(readings: list[Any], is_list: bool) -> None:
    """Refuse the request as a whole if it is not what the document says."""
    if len(readings) > MOST_READINGS:
        raise Invalid(
            f"at most {MOST_READINGS} readings in one request",
            errors=[FieldError("#", f"holds {len(readings)} readings")],
        )
    errors = []
    for index, reading in enumerate(readings):
        at = f"#/{index}" if is_list else "#"
        if not isinstance(reading, dict):
            errors.append(FieldError(at, "a reading is an object"))
            continue
        errors += [
            FieldError(f"{at}/{name}" if is_list else f"#/{name}", "unknown field")
            for name in reading.keys() - {"ts", "values", "device_id"}
        ]
        if not isinstance(reading.get("values"), dict):
            pointer = f"{at}/values" if is_list else "#/values"
            errors.append(FieldError(pointer, "an object of metrics is required"))
    if errors:
        raise Invalid("the readings are not of the form {ts?, values}", errors=errors[:20])


async def _sources(
    request: Request, sender: Sender, readings: list[dict[str, Any]]
) -> dict[UUID, tuple[Source, list[int]]]:
    """Group the readings by device. A device speaks for itself, a user names his tenant's."""
    grouped: dict[UUID, tuple[Source, list[int]]] = {}
    if sender.source is not None:
        named = [
            FieldError(f"#/{index}/device_id", "a device speaks for itself alone")
            for index, reading in enumerate(readings)
            if reading.get("device_id") not in (None, str(sender.source.device_id))
        ]
        if named:
            raise Invalid("a device's token is for its own telemetry", errors=named[:20])
        grouped[sender.source.device_id] = (sender.source, list(range(len(readings))))
        return grouped
    assert sender.user is not None
    for index, reading in enumerate(readings):
        try:
            device_id = UUID(reading.get("device_id", ""))
        except (ValueError, TypeError, AttributeError):
            raise Invalid(
                "a user names the device",
                errors=[FieldError(f"#/{index}/device_id", "the id of a device is required")],
            ) from None
        if device_id not in grouped:
            source = await request.app.state.sources.of_tenant(sender.user.tenant_id, device_id)
            grouped[device_id] = (source, [])
        grouped[device_id][1].append(index)
    return grouped


def _count_accepted(decoded: Decoded, refusals: list[Refusal]) -> int:
    return len(decoded.points) - sum(r.reason == "type_changed" for r in refusals)


@router.get("/quarantine", responses=problems(Malformed))
async def list_quarantine(
    who: CanReadTelemetry,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    device_id: Annotated[UUID | None, Query()] = None,
) -> QuarantinePage:
    """List what was acknowledged and could not be stored, newest first, with the reasons."""
    position = decode_cursor(cursor, _Position) if cursor else None
    before = (position.received_at, position.id) if position else None
    entries = await store.quarantine.page(limit + 1, before, device_id)
    more = len(entries) > limit
    entries = entries[:limit]
    overflow = await store.quarantine.overflow()
    return QuarantinePage(
        items=[QuarantinedOut.model_validate(entry) for entry in entries],
        next_cursor=encode_cursor(_Position(entries[-1].received_at, entries[-1].id))
        if more
        else None,
        overflow=OverflowOut.model_validate(overflow) if overflow else None,
    )


@router.get("/quarantine/{entry_id}", responses=problems(NotFound))
async def get_quarantined(
    entry_id: UUID, who: CanReadTelemetry, store: InTransaction
) -> QuarantinedWithPayloadOut:
    """Return one entry with its payload."""
    entry, kept = await store.quarantine.get(entry_id)
    try:
        payload, encoding = kept.decode(), "utf-8"
    except UnicodeDecodeError:
        payload, encoding = base64.b64encode(kept).decode(), "base64"
    shown = QuarantinedOut.model_validate(entry).model_dump()
    return QuarantinedWithPayloadOut(**shown, payload=payload, encoding=encoding)


@router.post(
    "/quarantine/{entry_id}/replay",
    status_code=204,
    openapi_extra=_CORRECTED,
    responses=problems(
        Malformed, NotFound, Conflict, TooLarge, UnsupportedMedia, Invalid, Unavailable
    ),
)
async def replay_quarantined(
    entry_id: UUID, request: Request, who: CanWriteTelemetry, now: Now
) -> Response:
    """Take an entry in again, in the device's name; on success the entry is gone.

    Without a body the payload is what it was. With one it is the corrected payload, in whole, as the
    device would have sent it. All of it is taken or nothing.
    """
    corrected = await request.body() or None
    if corrected is not None:
        _check_media_type(request)
    await request.app.state.replays.replay(who.tenant_id, entry_id, corrected, now=now)
    return Response(status_code=204)


@router.delete("/quarantine/{entry_id}", status_code=204, responses=problems(NotFound))
async def discard_quarantined(
    entry_id: UUID, who: CanWriteTelemetry, store: InTransaction
) -> Response:
    """Remove an entry for good."""
    await store.quarantine.discard(entry_id)
    return Response(status_code=204)
