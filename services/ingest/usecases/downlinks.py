"""The ways down: which devices can be sent commands here, and sending them in order."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import NamedTuple, Protocol
from uuid import UUID

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.errors import AppError, Unavailable
from libs.common.tasks import is_own_cancellation
from services.ingest.domain.command import LONGEST_ERROR, Delivered, Outgoing
from services.ingest.domain.device import Source
from services.ingest.store.commands import Claimed, Dispatches, Outcome, Sent
from services.ingest.usecases.commands import say_completed

log = structlog.get_logger(__name__)

DEVICES_AT_ONCE = 500
"""Whose commands are taken in one transaction."""
COMMANDS_AT_ONCE = 16
"""How many of one device."""
LOOKED_AT_ONCE = 2_000
PAUSE_S = 1.0
STOP_S = 5.0

Send = Callable[[Outgoing], Awaitable[Delivered]]
"""Hands a command to the device and returns once it has left, or, where the protocol can tell, once
the device has it. Raises Unavailable if the way is gone: the command stays queued. Raises another
AppError if the device cannot be given it: the command has failed, with that detail. It is called
for one command at a time; a cancelled call means that nobody waits for its outcome any more."""


class Downlinks(Protocol):
    """Where a protocol says which devices it can send commands to."""

    def attach(self, source: Source, send: Send, most: int | None = None) -> None:
        """Say that the device can take commands now: those that wait leave at once, in order.

        It takes no more than `most` in all, if that is said. The way attached last is the one used;
        when it is closed, the one before it that is still open.
        """
        ...

    def detach(self, source: Source, send: Send) -> None:
        """Say that this way is closed. Nothing happens if it was not attached."""
        ...


class _Way(NamedTuple):
    source: Source
    send: Send
    most: int | None


class Dispatcher:
    """Sends the commands of the devices that have a way down in this process. One an event loop.

    A command is claimed in the database before it is sent, so of two processes one sends it, and
    how it went is written down behind. Both are done for many devices at once; each device gets its
    commands one at a time, in the order they were made. What was claimed and is not known to have
    arrived is sent again after `resend_after`, under the same id: a process may have died between.
    """

    def __init__(self, dispatches: Dispatches, clock: Clock, resend_after: timedelta) -> None:
        self._dispatches = dispatches
        self._clock = clock
        self._resend_after = resend_after
        self._ways: dict[UUID, list[_Way]] = {}
        """The ways to each device; the last one is used."""
        self._wanted: dict[UUID, None] = {}
        """Devices that may have something to be sent, in the order of asking."""
        self._sending: dict[UUID, asyncio.Task[None]] = {}
        self._again: set[UUID] = set()
        """Those that were asked about while something was being sent to them."""
        self._outcomes: list[Outcome] = []
        self._some = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def attach(self, source: Source, send: Send, most: int | None = None) -> None:
        """Say that the device can take commands now by `send`; what waits for it leaves at once.

        When this way closes, an earlier one that is still open is used again.
        """
        ways = self._ways.setdefault(source.device_id, [])
        ways.append(_Way(source, send, most))
        self.wake(source.device_id)

    def detach(self, source: Source, send: Send) -> None:
        """Say that this way is closed."""
        ways = self._ways.get(source.device_id, [])
        # Equal, not identical: a bound method is another object each time it is asked for.
        ways[:] = [way for way in ways if way.send != send]
        if not ways:
            self._ways.pop(source.device_id, None)
            self._wanted.pop(source.device_id, None)

    def wake(self, device_id: UUID) -> None:
        """Look soon what there is to be sent to a device, if there is a way to it."""
        if device_id not in self._ways:
            return
        if device_id in self._sending:
            self._again.add(device_id)
            return
        self._wanted[device_id] = None
        self._some.set()

    def wake_all(self) -> None:
        """Look soon what there is to be sent to any device."""
        for device_id in self._ways:
            self.wake(device_id)

    async def look(self) -> None:
        """Find what waits for devices here though nobody said so, and what must be sent again."""
        keys = [(ways[-1].source.tenant_id, device) for device, ways in self._ways.items()]
        for start in range(0, len(keys), LOOKED_AT_ONCE):
            some = keys[start : start + LOOKED_AT_ONCE]
            for device_id in await self._dispatches.waiting(some, self._resend_after):
                self.wake(device_id)

    def start(self) -> None:
        """Begin to send."""
        self._worker = asyncio.create_task(self._work_forever(), name="ingest.commands")

    async def stop(self) -> None:
        """End; what has not left by now waits again, as far as that can be written within 5 s."""
        if self._worker is None:
            return
        tasks = [self._worker, *self._sending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker = None
        try:
            async with asyncio.timeout(STOP_S):
                await self._write_outcomes()
        except Exception:
            # What is not written is sent again by whoever has the device next.
            log.exception("how commands went is not written down")

    async def _work_forever(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._outcomes or self._wanted:
                try:
                    await self._write_outcomes()
                    await self._claim_some()
                except Exception as error:
                    if is_transient(error):
                        log.warning("commands wait for the database", error=str(error))
                    else:
                        # Ours to find. What was sent already is sent again: its id is the same.
                        log.exception("commands could not be sent")
                        self._outcomes.clear()
                    await asyncio.sleep(PAUSE_S)

    async def _write_outcomes(self) -> None:
        outcomes, self._outcomes = self._outcomes, []
        if not outcomes:
            return
        try:
            tenants = {outcome.claimed.tenant_id for outcome in outcomes}
            async with self._dispatches.begin(tenants) as dispatching:
                say_completed(dispatching, await dispatching.deliver(outcomes))
        except BaseException:
            self._outcomes[:0] = outcomes
            raise

    async def _claim_some(self) -> None:
        wanted = list(self._wanted)[:DEVICES_AT_ONCE]
        for device_id in wanted:
            del self._wanted[device_id]
        # One that was asked about while its commands were being claimed has a sender by now.
        self._again.update(device for device in wanted if device in self._sending)
        devices = [device for device in wanted if device not in self._sending]
        if not devices:
            return
        ways = {device_id: self._ways[device_id][-1] for device_id in devices}
        most = {
            (way.source.tenant_id, device_id): min(way.most or COMMANDS_AT_ONCE, COMMANDS_AT_ONCE)
            for device_id, way in ways.items()
        }
        try:
            async with self._dispatches.begin({tenant for tenant, _ in most}) as dispatching:
                claimed = await dispatching.claim(most, self._resend_after)
        except Exception:
            for device_id in devices:
                self.wake(device_id)
            raise
        by_device: dict[UUID, list[Claimed]] = {}
        for one in claimed:
            by_device.setdefault(one.device_id, []).append(one)
        for device_id, commands in by_device.items():
            self._sending[device_id] = asyncio.create_task(
                self._send_all(device_id, commands), name="ingest.commands.send"
            )

    async def _send_all(self, device_id: UUID, commands: Sequence[Claimed]) -> None:
        """Send a device what is claimed for it, in order, until the way is closed."""
        left = list(commands)
        is_open = True
        try:
            while left and is_open:
                outcome = await self._send(left[0])
                del left[0]
                self._outcomes.append(outcome)
                is_open = outcome.sent is not Sent.RETURNED
        except asyncio.CancelledError:
            # Of the one under way nobody knows; it is sent again.
            del left[0]
            raise
        finally:
            self._outcomes += [Outcome(command, Sent.RETURNED) for command in left]
            del self._sending[device_id]
            was_asked = device_id in self._again
            self._again.discard(device_id)
            if was_asked or (is_open and len(commands) == COMMANDS_AT_ONCE):
                self.wake(device_id)
            self._some.set()

    async def _send(self, claimed: Claimed) -> Outcome:
        ways = self._ways.get(claimed.device_id)
        if not ways or ways[-1].source.is_revoked:
            return Outcome(claimed, Sent.RETURNED)
        if claimed.outgoing.expires_at <= self._clock.now():
            return Outcome(claimed, Sent.LATE)
        try:
            async with asyncio.timeout(self._resend_after.total_seconds()):
                delivered = await ways[-1].send(claimed.outgoing)
            return Outcome(claimed, Sent(delivered.value))
        except asyncio.CancelledError as error:
            if is_own_cancellation(error):
                raise
            # What the protocol waited for was cancelled, as when its connection ends.
            return Outcome(claimed, Sent.SENT)
        except TimeoutError:
            # It may have arrived, or not: as if the protocol could not tell.
            return Outcome(claimed, Sent.SENT)
        except Unavailable:
            return Outcome(claimed, Sent.RETURNED)
        except AppError as error:
            return Outcome(claimed, Sent.FAILED, error.detail[:LONGEST_ERROR])
        except Exception:
            # Ours to find; those that wait behind it must not wait for that.
            log.exception("a command could not be sent", device=str(claimed.device_id))
            return Outcome(claimed, Sent.FAILED, "internal")
