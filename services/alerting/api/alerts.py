"""Alerts over HTTP."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Query
from pydantic import Field

from libs.common.auth.principal import Principal
from libs.common.errors import Conflict, Malformed, NotFound, PreconditionFailed
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Out
from libs.common.severity import Severity
from services.alerting.api.deps import (
    CanAcknowledge,
    CanReadAlerts,
    CanResolve,
    IfMatch,
    InTransaction,
    page_of,
)
from services.alerting.domain.alert import How, State, What
from services.alerting.domain.channel import ChannelKind
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.notification import Notification, Status
from services.alerting.domain.trigger import SourceKind
from services.alerting.store.alerts import AlertFilter
from services.alerting.usecases import alerts as usecases
from services.alerting.usecases.alerts import Act

router = APIRouter(prefix="/api/v1/alerts", tags=["alerts"], route_class=IdempotentRoute)

Text = Annotated[
    str, Field(max_length=4000, pattern=r"^[^\x00]*$", examples=["The bearing is being replaced."])
]


class StateFilter(StrEnum):
    """A state, or `open` for all but resolved."""

    NEW = "new"
    ACKNOWLEDGED = "acknowledged"
    INVESTIGATING = "investigating"
    RESOLVED = "resolved"
    OPEN = "open"


class ActionIn(Body):
    """What goes with an action; the body may be left out."""

    note: Text = ""
    """Kept among the alert's notes, and in its history."""


class NoteIn(Body):
    """A note to write."""

    text: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4000,
            pattern=r"^[^\x00]*$",
            examples=["The bearing is being replaced."],
        ),
    ]


class AlertOut(Out):
    """An alert."""

    id: UUID
    title: Annotated[str, Field(examples=["temperature of press-7 is above 90"])]
    message: Annotated[str, Field(examples=["temperature is 96.2, above 90 for 30 s"])]
    severity: Severity
    state: State
    source_kind: SourceKind
    source_id: UUID
    """The rule's, the model's or the device's id."""
    device_id: UUID | None
    device_name: Annotated[str | None, Field(examples=["press-7"])]
    metric: Annotated[str | None, Field(examples=["temperature"])]
    value: Annotated[float | None, Field(examples=[96.2])]
    condition: Annotated[str | None, Field(examples=["> 90"])]
    """What was watched for, in words."""
    count: Annotated[int, Field(examples=[3])]
    """How often it was raised while open."""
    opened_at: datetime
    last_seen_at: datetime
    acknowledged_at: datetime | None
    acknowledged_by: UUID | None
    acknowledged_by_name: Annotated[str | None, Field(examples=["Ann Meyer"])]
    resolved_at: datetime | None
    resolved_by: UUID | None
    """Null if the platform closed it; see `resolved_how`."""
    resolved_by_name: Annotated[str | None, Field(examples=["Ann Meyer"])]
    resolved_how: How | None
    version: int


class HistoryOut(Out):
    """One thing that happened to an alert."""

    at: datetime
    what: What
    state: State
    """The state from then on."""
    severity: Severity
    by: UUID | None
    """Null: the platform itself."""
    by_name: Annotated[str | None, Field(examples=["Ann Meyer"])]
    detail: Annotated[str, Field(examples=["acknowledged by Ann Meyer"])]


class NoteOut(Out):
    """A note to an alert."""

    id: UUID
    at: datetime
    by: UUID
    by_name: Annotated[str | None, Field(examples=["Ann Meyer"])]
    text: Annotated[str, Field(examples=["The bearing is being replaced."])]


class NotificationOut(Out):
    """A message about an alert, on its way or arrived."""

    id: UUID
    """Also the webhook-id, and the front part of a mail's Message-ID."""
    channel_id: UUID
    channel_name: Annotated[str, Field(examples=["On call"])]
    channel_kind: ChannelKind
    kind: NoticeKind
    status: Status
    attempts: int
    reason: Annotated[str, Field(examples=[""])]
    """Why the last attempt failed, or why none was needed."""
    receipt: Annotated[str, Field(examples=["250 2.0.0 Ok: queued as 4F2A1"])]
    """The receiver's answer, once delivered."""
    created_at: datetime
    next_attempt_at: datetime | None
    finished_at: datetime | None


class _Newest(msgspec.Struct):
    opened_at: datetime
    id: UUID


class _Place(msgspec.Struct):
    seq: int


@router.get("", responses=problems(Malformed))
async def list_alerts(
    who: CanReadAlerts,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    state: Annotated[list[StateFilter] | None, Query(description="May be repeated.")] = None,
    severity: Annotated[list[Severity] | None, Query(description="May be repeated.")] = None,
    device_id: UUID | None = None,
) -> Page[AlertOut]:
    """List the alerts, newest first."""
    position = decode_cursor(cursor, _Newest) if cursor else None
    before = (position.opened_at, position.id) if position else None
    wanted = AlertFilter(_states(state or []), frozenset(severity or []), device_id)
    found = await store.alerts.page(limit + 1, before, wanted)
    return page_of(found, limit, AlertOut.model_validate, lambda a: _Newest(a.opened_at, a.id))


@router.get("/{alert_id}", responses=problems(NotFound))
async def get_alert(alert_id: UUID, who: CanReadAlerts, store: InTransaction) -> AlertOut:
    """Return one alert."""
    return AlertOut.model_validate(await store.alerts.get(alert_id))


@router.post("/{alert_id}/acknowledge", responses=problems(NotFound, Conflict, PreconditionFailed))
async def acknowledge_alert(
    alert_id: UUID,
    who: CanAcknowledge,
    store: InTransaction,
    now: Now,
    body: ActionIn | None = None,
    if_match: IfMatch = None,
) -> AlertOut:
    """Take a new alert on. Again by the same person is no fault; otherwise 409 names its state."""
    act = _act(who, now, body, if_match)
    return AlertOut.model_validate(await usecases.acknowledge(store, alert_id, act))


@router.post("/{alert_id}/investigate", responses=problems(NotFound, Conflict, PreconditionFailed))
async def investigate_alert(
    alert_id: UUID,
    who: CanAcknowledge,
    store: InTransaction,
    now: Now,
    body: ActionIn | None = None,
    if_match: IfMatch = None,
) -> AlertOut:
    """Say that someone looks for the cause; acknowledges a new alert too."""
    act = _act(who, now, body, if_match)
    return AlertOut.model_validate(await usecases.investigate(store, alert_id, act))


@router.post("/{alert_id}/resolve", responses=problems(NotFound, Conflict, PreconditionFailed))
async def resolve_alert(
    alert_id: UUID,
    who: CanResolve,
    store: InTransaction,
    now: Now,
    body: ActionIn | None = None,
    if_match: IfMatch = None,
) -> AlertOut:
    """Close an alert. If that which raised it happens again, a new one is opened."""
    act = _act(who, now, body, if_match)
    return AlertOut.model_validate(await usecases.resolve(store, alert_id, act))


@router.post("/{alert_id}/notes", status_code=201, responses=problems(NotFound))
async def add_alert_note(
    alert_id: UUID, body: NoteIn, who: CanAcknowledge, store: InTransaction, now: Now
) -> NoteOut:
    """Write a note to an alert, open or not."""
    act = Act(by=who.subject, at=now, note_id=uuid4(), note=body.text)
    await usecases.add_note(store, alert_id, act)
    return NoteOut(
        id=act.note_id,
        at=now,
        by=who.subject,
        by_name=await store.names.find(who.subject),
        text=body.text,
    )


@router.get("/{alert_id}/notes", responses=problems(NotFound, Malformed))
async def list_alert_notes(
    alert_id: UUID, who: CanReadAlerts, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[NoteOut]:
    """List an alert's notes, oldest first."""
    await store.alerts.get(alert_id)
    found = await store.alerts.notes(alert_id, limit + 1, _after(cursor))
    return page_of(found, limit, NoteOut.model_validate, lambda note: _Place(note.seq))


@router.get("/{alert_id}/history", responses=problems(NotFound, Malformed))
async def list_alert_history(
    alert_id: UUID, who: CanReadAlerts, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[HistoryOut]:
    """List what happened to an alert, who did it and when, oldest first."""
    await store.alerts.get(alert_id)
    found = await store.alerts.history(alert_id, limit + 1, _after(cursor))
    return page_of(found, limit, HistoryOut.model_validate, lambda line: _Place(line.seq))


@router.get("/{alert_id}/notifications", responses=problems(NotFound, Malformed))
async def list_alert_notifications(
    alert_id: UUID, who: CanReadAlerts, store: InTransaction, limit: Limit, cursor: Cursor
) -> Page[NotificationOut]:
    """List whom the alert was told to, or is to be, oldest first."""
    await store.alerts.get(alert_id)
    found = await store.notifications.of_alert(alert_id, limit + 1, _after(cursor))
    return page_of(
        found, limit, lambda placed: _notification(placed[1]), lambda placed: _Place(placed[0])
    )


def _act(who: Principal, now: datetime, body: ActionIn | None, if_match: str | None) -> Act:
    return Act(
        by=who.subject,
        at=now,
        note_id=uuid4(),
        note=body.note if body else "",
        version=int(if_match.strip('"')) if if_match else None,
    )


def _states(wanted: list[StateFilter]) -> frozenset[State]:
    states = {State(state.value) for state in wanted if state is not StateFilter.OPEN}
    if StateFilter.OPEN in wanted:
        states |= set(State) - {State.RESOLVED}
    return frozenset(states)


def _after(cursor: str | None) -> int:
    return decode_cursor(cursor, _Place).seq if cursor else 0


def _notification(notification: Notification) -> NotificationOut:
    return NotificationOut(
        id=notification.id,
        channel_id=notification.channel_id,
        channel_name=notification.channel_name,
        channel_kind=notification.channel_kind,
        kind=notification.kind,
        status=notification.status,
        attempts=notification.attempts,
        reason=notification.reason,
        receipt=notification.receipt,
        created_at=notification.created_at,
        next_attempt_at=notification.due_at if notification.status is Status.PENDING else None,
        finished_at=notification.finished_at,
    )
