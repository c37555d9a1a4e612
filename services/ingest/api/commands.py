"""Commands: users send them to devices; devices without a connection fetch and answer them."""

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, JsonValue

from libs.common.errors import (
    Conflict,
    Invalid,
    Malformed,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
)
from libs.common.http.doors import Now
from libs.common.http.idempotency import IdempotentRoute
from libs.common.http.pages import Cursor, Limit, Page, decode_cursor, encode_cursor
from libs.common.http.problems import problems
from libs.common.http.schemas import Body, Duration, Moment, Out
from services.ingest.api.deps import (
    CanReadCommands,
    CanSendCommands,
    InTransaction,
    TheDevice,
)
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import LONGEST_NAME, Command, CommandStatus, Outgoing
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.usecases import commands as usecases

router = APIRouter(
    prefix="/api/v1/devices/{device_id}/commands", tags=["commands"], route_class=IdempotentRoute
)
of_device = APIRouter(prefix="/api/v1/devices/me/commands", tags=["commands"])
"""Stands before whatever takes a device's id at the place of `me`."""

MOST_FETCHED = 16
LONGEST_WAIT_S = 50
"""Shorter than the gateway waits for a service."""


class CommandIn(Body):
    """A command to send to a device."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=LONGEST_NAME,
            pattern=r"^[^\x00-\x1f]+$",
            examples=["set_speed"],
        ),
    ]
    params: Annotated[dict[str, JsonValue], Field(default_factory=dict, examples=[{"rpm": 900}])]
    """At most 16 kB as JSON."""
    timeout: (
        Annotated[
            Duration,
            Field(ge=usecases.SHORTEST_TIMEOUT, le=usecases.LONGEST_TIMEOUT),
        ]
        | None
    ) = None
    """How long the device has to answer once it was sent: seconds, or ISO 8601 (`PT30S`)."""
    expires_at: Moment | None = None
    """Until when it is sent to a device that was away."""
    two_way: bool = True
    """Whether the device answers. If not, the command is done when it has left."""


class CommandOut(Out):
    """A command and how far it has come."""

    id: UUID
    device_id: UUID
    name: Annotated[str, Field(examples=["set_speed"])]
    params: Annotated[dict[str, Any], Field(examples=[{"rpm": 900}])]
    two_way: bool
    timeout: timedelta
    status: CommandStatus
    created_by: Annotated[str, Field(examples=["ann@plant.example"])]
    """A user's id, or `rule:` and the rule's."""
    created_at: datetime
    expires_at: datetime
    sent_at: datetime | None
    acknowledged_at: datetime | None
    completed_at: datetime | None
    attempts: int
    """How often it was sent; each time with the same id."""
    result: Any
    """What the device answered."""
    error: str | None
    """`timeout`, `cancelled`, `device_removed`, `too_many_commands`, or what the device said."""


class StepOut(Out):
    """What happened to a command, and when."""

    at: datetime
    status: CommandStatus
    detail: Annotated[str, Field(examples=["sent by MQTT"])]


class CommandWithStepsOut(CommandOut):
    """A command with its history."""

    steps: list[StepOut]


class OutgoingOut(Out):
    """A command as a device gets it."""

    id: UUID
    name: Annotated[str, Field(examples=["set_speed"])]
    params: Annotated[dict[str, Any], Field(examples=[{"rpm": 900}])]
    expires_at: datetime


class Fetched(Out):
    """The commands for a device, in the order they were made."""

    items: list[OutgoingOut]


class ReplyIn(Body):
    """What became of a command."""

    status: Literal["acknowledged", "succeeded", "failed"]
    """`acknowledged` says that the device has it and is at it."""
    result: JsonValue = None
    error: (
        Annotated[str, Field(max_length=2_000, examples=["the drive does not answer"])] | None
    ) = None


class _Position(msgspec.Struct):
    created_at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: UUID


Wait = Annotated[
    int,
    Query(ge=0, le=LONGEST_WAIT_S, description="How many seconds to wait for the outcome."),
]


@of_device.get("", responses=problems(Unauthenticated, TooManyRequests, Unavailable))
async def fetch_commands(
    request: Request,
    source: TheDevice,
    wait: Annotated[
        int, Query(ge=1, le=LONGEST_WAIT_S, description="How many seconds to wait for one.")
    ] = 1,
    limit: Annotated[int, Query(ge=1, le=MOST_FETCHED)] = MOST_FETCHED,
) -> Fetched:
    """Fetch the commands for this device, waiting for one if there is none.

    What is not answered within the time for it is given out again, with the same id. A second
    request of the same device ends the first, which then is answered with none.
    """
    request.app.state.reception.met(source, Protocol.HTTP)
    fetched: list[Outgoing] = await request.app.state.polls.fetch(
        source, limit, timedelta(seconds=wait), request.is_disconnected
    )
    return Fetched(items=[OutgoingOut.model_validate(command) for command in fetched])


@of_device.post(
    "/{command_id}/reply",
    status_code=204,
    responses=problems(
        Malformed, Unauthenticated, NotFound, Conflict, TooLarge, Invalid, Unavailable
    ),
)
async def reply_to_command(
    command_id: UUID, body: ReplyIn, request: Request, source: TheDevice, now: Now
) -> Response:
    """Say what became of a command. Said again it changes nothing."""
    reception = request.app.state.reception
    reception.met(source, Protocol.HTTP, PayloadFormat.JSON)
    reply = {"id": command_id, **body.model_dump()}
    await reception.reports.take(source, Channel.REPLIES, msgspec.json.encode(reply), now)
    return Response(status_code=204)


@router.post("", status_code=201, responses=problems(NotFound, Conflict))
async def send_command(
    device_id: UUID,
    body: CommandIn,
    who: CanSendCommands,
    store: InTransaction,
    now: Now,
) -> CommandOut:
    """Send a command to a device. It leaves at once, or when the device comes.

    The answer does not wait for that: ask for the command with `?wait=30`.
    """
    command = Command(
        id=uuid4(),
        device_id=device_id,
        name=body.name,
        params=body.params,
        two_way=body.two_way,
        timeout=body.timeout or usecases.TIMEOUT,
        status=CommandStatus.QUEUED,
        created_by=str(who.subject),
        created_at=now,
        expires_at=body.expires_at or now + usecases.EXPIRY,
    )
    return CommandOut.model_validate(await usecases.send(store, command))


@router.get("", responses=problems(Malformed, NotFound))
async def list_commands(
    device_id: UUID,
    who: CanReadCommands,
    store: InTransaction,
    limit: Limit,
    cursor: Cursor,
    status: Annotated[CommandStatus | None, Query()] = None,
) -> Page[CommandOut]:
    """List a device's commands, newest first."""
    await store.devices.get(device_id)
    position = decode_cursor(cursor, _Position) if cursor else None
    before = (position.created_at, position.id) if position else None
    commands = await store.commands.page(device_id, limit + 1, before, status)
    more = len(commands) > limit
    commands = commands[:limit]
    return Page(
        items=[CommandOut.model_validate(command) for command in commands],
        next_cursor=encode_cursor(_Position(commands[-1].created_at, commands[-1].id))
        if more
        else None,
    )


@router.get("/{command_id}", responses=problems(NotFound))
async def get_command(
    device_id: UUID, command_id: UUID, request: Request, who: CanReadCommands, wait: Wait = 0
) -> CommandWithStepsOut:
    """Return a command with its history; with `wait` once it is done, or when the time is over."""
    command, steps = await request.app.state.outcomes.of(
        who.tenant_id, device_id, command_id, timedelta(seconds=wait)
    )
    return CommandWithStepsOut(
        **CommandOut.model_validate(command).model_dump(),
        steps=[StepOut.model_validate(step) for step in steps],
    )


@router.post("/{command_id}/cancel", responses=problems(NotFound, Conflict))
async def cancel_command(
    device_id: UUID, command_id: UUID, who: CanSendCommands, store: InTransaction, now: Now
) -> CommandOut:
    """Call off a command that has not been sent. It is `failed` then, with the error `cancelled`."""
    command = await usecases.cancel(store, device_id, command_id, by=str(who.subject), at=now)
    return CommandOut.model_validate(command)
