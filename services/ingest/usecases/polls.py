"""Waiting: devices without a connection for their commands, users for what became of one."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.errors import Unavailable
from services.ingest.domain.command import Command, Delivered, Outgoing, Step
from services.ingest.domain.device import Source
from services.ingest.store.store import IngestStore
from services.ingest.usecases.downlinks import Downlinks

MOST_WAITING = 1_000
"""Users who wait for an outcome, in one process; others are answered at once."""


class _Poll:
    """One request of a device: what it takes with it, until it has enough or is over."""

    def __init__(self, most: int, is_gone: Callable[[], Awaitable[bool]]) -> None:
        self._most = most
        self._is_gone = is_gone
        self._is_over = False
        self.taken: list[Outgoing] = []
        self.some = asyncio.Event()

    async def send(self, command: Outgoing) -> Delivered:
        """Let the answer hold one more command."""
        # Asked before the first alone: those after it come while nobody else has a turn.
        if not self._is_over and not self.taken and await self._is_gone():
            self.end()
        if self._is_over or len(self.taken) >= self._most:
            raise Unavailable("the request is over")
        self.taken.append(command)
        self.some.set()
        return Delivered.SENT

    def end(self) -> None:
        """Take no more."""
        self._is_over = True
        self.some.set()


class Polls:
    """Devices that ask for their commands and wait for them. One request a device at a time."""

    def __init__(self, downlinks: Downlinks) -> None:
        self._downlinks = downlinks
        self._polls: dict[UUID, _Poll] = {}

    async def fetch(
        self,
        source: Source,
        most: int,
        within: timedelta,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> list[Outgoing]:
        """Return the device's next commands, at most so many, waiting for the first.

        None if there is none in time, if the device asks again meanwhile, or may not go on.
        """
        poll = _Poll(most, is_gone)
        self.end(source.device_id)
        self._polls[source.device_id] = poll
        self._downlinks.attach(source, poll.send, most)
        try:
            async with asyncio.timeout(within.total_seconds()):
                await poll.some.wait()
        except TimeoutError:
            pass
        finally:
            poll.end()
            self._downlinks.detach(source, poll.send)
            if self._polls.get(source.device_id) is poll:
                del self._polls[source.device_id]
        return poll.taken

    def end(self, device_id: UUID, _reason: str = "") -> None:
        """Answer the device's request now, if there is one."""
        poll = self._polls.get(device_id)
        if poll is not None:
            poll.end()


class Outcomes:
    """Users who wait until nothing more becomes of a command."""

    def __init__(self, transactions: Transactions[IngestStore]) -> None:
        self._transactions = transactions
        self._waiting: dict[UUID, set[asyncio.Event]] = {}

    async def of(
        self, tenant_id: UUID, device_id: UUID, command_id: UUID, within: timedelta
    ) -> tuple[Command, list[Step]]:
        """Return a command and its history, once it is done or the time is over. Raises NotFound."""
        done = asyncio.Event()
        # Before it is looked at, so that no end is missed between the two.
        waiting = self._waiting.setdefault(command_id, set())
        waiting.add(done)
        try:
            command, steps = await self._look(tenant_id, device_id, command_id)
            if command.status.is_final or not within or len(self._waiting) > MOST_WAITING:
                return command, steps
            try:
                async with asyncio.timeout(within.total_seconds()):
                    await done.wait()
            except TimeoutError:
                pass
        finally:
            waiting.discard(done)
            if not waiting:
                self._waiting.pop(command_id, None)
        return await self._look(tenant_id, device_id, command_id)

    def completed(self, command_id: UUID) -> None:
        """Tell those who wait for this command that it is done."""
        for done in self._waiting.get(command_id, ()):
            done.set()

    async def _look(
        self, tenant_id: UUID, device_id: UUID, command_id: UUID
    ) -> tuple[Command, list[Step]]:
        async with self._transactions.begin(tenant_id) as store:
            command = await store.commands.get(device_id, command_id)
            return command, await store.commands.steps(command_id)
