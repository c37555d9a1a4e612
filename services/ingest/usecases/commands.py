"""What is done with commands: made, called off, answered, and ended when their time is over."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from libs.common.db.transactions import Emitter
from libs.common.errors import Conflict, FieldError, Invalid, NotFound
from libs.common.events.ingest import CommandCompleted, CommandQueued
from libs.common.events.rules import CommandRequested
from services.ingest.domain.command import (
    LONGEST_NAME,
    Command,
    CommandStatus,
    Reply,
    UnknownCommand,
    check_storable,
    numbered,
    read_reply,
)
from services.ingest.store.commands import Completed, Dispatches
from services.ingest.store.store import IngestStore

ENDED_AT_ONCE = 500
MOST_OPEN = 100
"""How many commands of a device may be open."""
TIMEOUT = timedelta(minutes=1)
"""How long a device has to answer, if nothing is said."""
EXPIRY = timedelta(hours=1)
"""How long a command waits for its device, if nothing is said."""
LONGEST_EXPIRY = timedelta(days=30)
SHORTEST_TIMEOUT = timedelta(seconds=1)
LONGEST_TIMEOUT = timedelta(days=1)

CANCELLED = "cancelled"
DEVICE_REMOVED = "device_removed"
TOO_MANY = "too_many_commands"
LATE = "late answer"


class TooManyCommands(Conflict):
    """The device has as many open commands as it may have."""

    slug = TOO_MANY


async def send(store: IngestStore, command: Command) -> Command:
    """Queue a new command for its device.

    Raises NotFound if there is no such device, TooManyCommands if too many are open, Invalid if it
    expires before it is made, or too late.
    """
    if not command.created_at < command.expires_at <= command.created_at + LONGEST_EXPIRY:
        raise Invalid(
            f"a command expires within {LONGEST_EXPIRY.days} days, and not in the past",
            errors=[FieldError("#/expires_at", "not within the next 30 days")],
        )
    check_storable(command.params, "#/params")
    # Locked: those that race are counted one after the other, and the device is not removed meanwhile.
    await store.devices.get(command.device_id, lock=True)
    if await store.commands.count_open(command.device_id) >= MOST_OPEN:
        raise TooManyCommands(f"the device has {MOST_OPEN} open commands already")
    if await store.commands.add(command):
        store.emit(
            CommandQueued(
                tenant_id=store.tenant_id,
                at=command.created_at,
                command_id=command.id,
                device_id=command.device_id,
            )
        )
    return command


async def request(store: IngestStore, event: CommandRequested, *, at: datetime) -> None:
    """Queue what a rule asks for; what cannot be queued is there to be seen, as failed.

    Raises NotFound if there is no such device.
    """
    timeout = TIMEOUT if event.timeout_s is None else timedelta(seconds=event.timeout_s)
    command = Command(
        id=uuid5(event.rule_id, event.key),
        device_id=event.device_id,
        name=event.name[:LONGEST_NAME],
        params=event.params,
        two_way=event.two_way,
        timeout=min(LONGEST_TIMEOUT, max(SHORTEST_TIMEOUT, timeout)),
        status=CommandStatus.QUEUED,
        created_by=f"rule:{event.rule_id}",
        created_at=at,
        expires_at=min(event.expires_at or at + EXPIRY, at + LONGEST_EXPIRY),
    )
    try:
        await send(store, command)
    except (TooManyCommands, Invalid) as error:
        failed = replace(
            command,
            params=command.params if isinstance(error, TooManyCommands) else {},
            status=CommandStatus.FAILED,
            completed_at=at,
            error=error.slug if isinstance(error, TooManyCommands) else error.detail,
        )
        if await store.commands.add(failed):
            _say(store, failed, at)


async def cancel(
    store: IngestStore, device_id: UUID, command_id: UUID, *, by: str, at: datetime
) -> Command:
    """Call a command off that has not left. Raises NotFound, and Conflict if it has left or is over."""
    command = await store.commands.get(device_id, command_id, lock=True)
    if command.status is not CommandStatus.QUEUED:
        raise Conflict(f"the command is {command.status}: only one that waits can be cancelled")
    command = replace(command, status=CommandStatus.FAILED, completed_at=at, error=CANCELLED)
    await store.commands.update(command, at, f"{CANCELLED} by {by}")
    _say(store, command, at)
    return command


async def take_reply(store: IngestStore, device_id: UUID, payload: bytes, *, at: datetime) -> None:
    """Note what a device says became of a command; said again it changes nothing.

    An answer that comes when the command is over is kept beside it; how it ended stands.
    Raises Malformed or Invalid if it is no answer, UnknownCommand if the device was sent no such
    command.
    """
    reply = read_reply(payload)
    command_id: UUID | None = reply.id
    if reply.id.int == numbered(reply.id):
        # No more than a number, by a protocol that has no room for ids.
        command_id = await store.commands.of_number(device_id, reply.id.int)
    try:
        command = await store.commands.get(device_id, command_id or reply.id, lock=True)
    except NotFound:
        raise UnknownCommand(f"no command {reply.id} was sent to this device") from None
    if command.attempts == 0:
        raise UnknownCommand(f"no command {reply.id} was sent to this device")
    if command.status.is_final:
        await _note_late(store, command, reply, at)
        return
    status = CommandStatus(reply.status)
    if not status.is_final:
        if command.status is not CommandStatus.ACKNOWLEDGED:
            command = replace(command, status=status, acknowledged_at=at)
            await store.commands.update(command, at)
        return
    command = replace(
        command,
        status=status,
        acknowledged_at=command.acknowledged_at or at,
        completed_at=at,
        result=reply.result,
        error=reply.error or ("failed" if status is CommandStatus.FAILED else None),
    )
    await store.commands.update(command, at)
    _say(store, command, at)


async def _note_late(store: IngestStore, command: Command, reply: Reply, at: datetime) -> None:
    """Write down the first answer that came too late, if it says something new."""
    if reply.status in (command.status, CommandStatus.ACKNOWLEDGED):
        return
    steps = await store.commands.steps(command.id)
    if not any(step.detail.startswith(LATE) for step in steps):
        late = replace(command, result=reply.result)
        await store.commands.update(late, at, f"{LATE}: {reply.status}")


async def abandon(store: IngestStore, device_id: UUID, *, at: datetime) -> None:
    """End the open commands of a device that was removed at a moment; it may be back since."""
    for command in await store.commands.open_of(device_id):
        if command.created_at > at:
            continue
        ended = replace(command, status=CommandStatus.FAILED, completed_at=at, error=DEVICE_REMOVED)
        await store.commands.update(ended, at, DEVICE_REMOVED)
        _say(store, ended, at)


async def end_overdue(dispatches: Dispatches) -> None:
    """End the commands of all tenants that were not sent in time, or not answered."""
    while due := await dispatches.due(ENDED_AT_ONCE):
        async with dispatches.begin({tenant for tenant, _ in due}) as dispatching:
            say_completed(dispatching, await dispatching.finish(due))
        if len(due) < ENDED_AT_ONCE:
            return


def say_completed(emitter: Emitter, completed: Sequence[Completed]) -> None:
    """Say of each command that nothing more becomes of it."""
    for command in completed:
        emitter.emit(
            CommandCompleted(
                tenant_id=command.tenant_id,
                at=command.at,
                command_id=command.command_id,
                device_id=command.device_id,
                name=command.name,
                status=command.status.value,
                error=command.error,
                requested_by=command.created_by,
            )
        )


def _say(store: IngestStore, command: Command, at: datetime) -> None:
    say_completed(
        store,
        [
            Completed(
                store.tenant_id,
                command.id,
                command.device_id,
                command.name,
                command.status,
                command.error,
                command.created_by,
                at,
            )
        ],
    )
