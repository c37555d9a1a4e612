"""Telemetry over HTTP, and the quarantine."""

import base64
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from libs.common.errors import (
    Conflict,
    FieldError,
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
from libs.common.http.doors import Now
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Out
from libs.common.http.strict_json import check_json
from services.ingest.api.body import read_aside, read_body
from services.ingest.api.deps import (
    CanReadTelemetry,
    CanWriteTelemetry,
    InTransaction,
    MaySend,
    Sender,
)
from services.ingest.api.limits import rate_limit_headers
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.formats import ADDRESSED, CONTENT_TYPES, FORMATS, format_of
from services.ingest.domain.lines import Addressed, Lines, ReadAddressed
from services.ingest.domain.payload import (
    MOST_READINGS,
    Decoded,
    Read,
    Window,
    add_reading,
    fault_beside,
    parse_json,
)
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.usecases.addressed import Taken, of_tenant, own, take

router = APIRouter(prefix="/api/v1/telemetry", tags=["telemetry"])

DeviceId = Annotated[
    UUID | None, Query(description="For users: whose what names no device itself is.")
]


class RejectedOut(Out):
    """A point that was not taken. It lies in the quarantine, with its reason."""

    index: Annotated[int, Field(examples=[2])]
    """Which reading, record, line or row of the request, counted from 0."""
    metric: Annotated[str | None, Field(examples=["temperature"])]
    reason: Annotated[str, Field(examples=["clock_ahead"])]
    detail: Annotated[str, Field(examples=["its time lies more than 5 minutes ahead"])]


class Acceptance(Out):
    """What became of the points of a request, all of which are durable."""

    accepted: Annotated[int, Field(examples=[12])]
    rejected: list[RejectedOut]


class QuarantinedOut(Out):
    """A message, or a part of one, that could not be stored."""

    id: UUID
    device_id: UUID
    received_at: datetime
    """The time of what has no time of its own."""
    channel: Channel
    """What the message was about."""
    reason: Annotated[str, Field(examples=["unparseable"])]
    detail: Annotated[str, Field(examples=["it is not JSON"])]
    metric: Annotated[str | None, Field(examples=["temperature"])]
    size: Annotated[int, Field(examples=[17])]
    """How many bytes of the payload are kept."""
    cut_from: int | None
    """How many bytes it had, if only its beginning is kept."""


class QuarantinedWithPayloadOut(QuarantinedOut):
    """An entry of the quarantine with what was sent."""

    payload: Annotated[str, Field(examples=["{temperature: 96}"])]
    """As it came if it is UTF-8, else in base64."""
    encoding: Literal["utf-8", "base64"]


class OverflowOut(Out):
    """How many entries gave way to newer ones, from when to when."""

    dropped: Annotated[int, Field(examples=[12])]
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
            "description": "A value of bad quality may be null.",
            "type": "object",
            "additionalProperties": {"type": ["number", "boolean", "string", "null"]},
            "examples": [{"temp": 21.5}],
        },
        "quality": {
            "description": "Of all values of the reading; absent: good.",
            "enum": ["good", "uncertain", "bad"],
        },
        "units": {
            "description": "The units of values, where they are not those they are stored in.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "examples": [{"temp": "degF"}],
        },
        "seq": {
            "description": "A counter of the device's own; what is missing in it is counted.",
            "type": "integer",
            "minimum": 0,
        },
        "device_id": {
            "description": "Required of users; a device speaks for itself alone.",
            "type": "string",
            "format": "uuid",
        },
    },
}
_READING_FIELDS = frozenset({"ts", "values", "quality", "units", "seq", "device_id"})
_SENML_RECORD = {"type": "object", "examples": [{"n": "temp", "u": "Cel", "v": 21.5}]}
_TEXT = {"schema": {"type": "string"}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
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
            },
            "application/senml+json": {
                "schema": {"type": "array", "items": _SENML_RECORD, "maxItems": MOST_READINGS},
                "example": [{"bn": "press-7:", "n": "temp", "u": "Cel", "v": 21.5}],
            },
            "application/cbor": _BINARY,
            "application/senml+cbor": _BINARY,
            "application/x-ndjson": {
                **_TEXT,
                "example": '{"values": {"temp": 21.5}}\n{"values": {"temp": 21.7}}\n',
            },
            "text/csv": {**_TEXT, "example": "ts,temp\n2026-01-31T12:00:00Z,21.5\n"},
            "application/x-influx-line-protocol": {
                **_TEXT,
                "example": "press temp=21.5,running=true 1769860800000000000\n",
            },
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
        TooManyRequests,
        Unavailable,
    ),
)
async def send_telemetry(
    request: Request, response: Response, sender: MaySend, now: Now, device_id: DeviceId = None
) -> Acceptance:
    """Take readings: one, or many, in any of the forms.

    The answer comes when every point is durable: the good ones on their way to the historian, the
    others in the quarantine, named under `rejected`. `index` counts readings, records, lines or rows.
    """
    written = format_of(request.headers.get("content-type", ""))
    if written is None:
        raise UnsupportedMedia(f"telemetry is sent as {', '.join(CONTENT_TYPES)}")
    read = _READERS.get(written) or _of_one(FORMATS[written])
    taken = await receive(request, response, sender, device_id, written, read, now)
    return Acceptance(
        accepted=taken.accepted,
        rejected=[
            RejectedOut(index=r.index, metric=r.metric, reason=r.reason, detail=r.detail)
            for r in taken.refused
        ],
    )


async def receive(
    request: Request,
    response: Response,
    sender: Sender,
    device_id: UUID | None,
    written: PayloadFormat,
    read: ReadAddressed,
    now: datetime,
) -> Taken:
    """Take the points of a body in; return when they are durable. A device is told in the response's
    headers where it stands.
    """
    settings, reception = request.app.state.settings, request.app.state.reception
    if sender.source is not None:
        reception.quotas.check(sender.source)
    body, charged = await read_body(request), None
    if sender.source is not None:
        charged = reception.quotas.charge(sender.source, len(body))
    window = Window.around(now, past=settings.oldest, ahead=settings.clock_ahead)
    addressed = await read_aside(read, body, now, window)
    taken = await take(
        reception.intake,
        reception.quotas,
        await _bring(request, sender, device_id, addressed, written),
        within=settings.accept_within,
        charged=charged,
    )
    if sender.source is not None:
        response.headers.update(rate_limit_headers(reception.quotas.of(sender.source)))
    return taken


async def _bring(
    request: Request,
    sender: Sender,
    device_id: UUID | None,
    addressed: Addressed,
    written: PayloadFormat,
) -> list[tuple[Source, Decoded]]:
    """Return the points with their devices. A device speaks for itself, a user names his tenant's."""
    if sender.source is not None:
        if device_id not in (None, sender.source.device_id):
            raise Invalid(
                "a device's token is for its own telemetry",
                errors=[FieldError("?device_id", "a device speaks for itself alone")],
            )
        request.app.state.reception.met(sender.source, Protocol.HTTP, written)
        return await own(sender.source, addressed)
    assert sender.user is not None
    return await of_tenant(request.app.state.sources, sender.user.tenant_id, device_id, addressed)


def _check_media_type(request: Request) -> None:
    if format_of(request.headers.get("content-type", "")) is not PayloadFormat.JSON:
        raise UnsupportedMedia("a corrected payload is sent as application/json")


def _of_one(read: Read) -> ReadAddressed:
    def read_addressed(payload: bytes, received_at: datetime, window: Window) -> Addressed:
        return {None: read(payload, received_at, window)}

    return read_addressed


def _read_json(payload: bytes, received_at: datetime, window: Window) -> Addressed:
    """Read JSON more strictly than a device's over MQTT, since a client can be told what is wrong."""
    parsed = parse_json(payload)
    with suppress(Invalid):
        # Keys that stand twice, and too many levels, spoil the whole; single values are judged below.
        check_json(payload)
    readings = parsed if isinstance(parsed, list) else [parsed]
    _check_shape(readings, isinstance(parsed, list))
    lines = Lines(received_at)
    for index, reading in enumerate(readings):
        named = reading.pop("device_id", None)
        add_reading(lines.of(named), index, reading, window)
        lines.end(named, index)
    return lines.addressed


_READERS: Mapping[PayloadFormat, ReadAddressed] = {**ADDRESSED, PayloadFormat.JSON: _read_json}
"""The readers of forms whose readings may be of several devices; JSON is read more strictly here."""


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
            FieldError(f"{at}/{name}", "unknown field") for name in reading.keys() - _READING_FIELDS
        ]
        if not isinstance(reading.get("values"), dict):
            errors.append(FieldError(f"{at}/values", "an object of metrics is required"))
        fault = fault_beside(reading)
        if fault is not None:
            errors.append(FieldError(f"{at}/{fault[0]}", fault[2]))
        if not isinstance(reading.get("device_id"), str | None):
            errors.append(FieldError(f"{at}/device_id", "the id of a device is a text"))
    if errors:
        raise Invalid("the readings are not of the form {ts?, values}", errors=errors[:20])


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
