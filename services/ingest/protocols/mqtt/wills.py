"""Wills of devices that are gone, taken unless they are back in time."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound
from services.ingest.domain.device import Status
from services.ingest.domain.payload import Read, decode
from services.ingest.protocols.mqtt.actions import Deliver
from services.ingest.store.store import IngestStore
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

AGAIN_S = 5.0
"""What cannot be done while the database is away is tried again after so long."""
STOP_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class PendingWill:
    """A will that is to be taken at `due` (the loop's clock), and how its payload is read."""

    message: Deliver
    inlet: Inlet
    due: float
    read: Read = decode


class Wills:
    """The wills that wait, one a device and `most` in all.

    Nobody has a will but we: its device is gone, and sends it no second time. So one that cannot be
    taken while the database is away waits for that, of each device the newest.
    """

    def __init__(
        self,
        transactions: Transactions[IngestStore],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        most: int,
    ) -> None:
        self._transactions = transactions
        self._spawn = spawn
        self._most = most
        self.waiting: dict[UUID, PendingWill] = {}
        """Those that are not taken if their device is back before they are due."""
        self._owed: dict[UUID, PendingWill] = {}
        """Those that are taken in any case, as soon as they can be."""
        self._asked: set[PendingWill] = set()
        """Those due whose devices are being looked up."""
        self._under_way: dict[Done, PendingWill] = {}
        """Those that are taken and not durable yet."""
        self._nothing_under_way = asyncio.Event()
        self._is_stopping = False

    def postpone(self, device_id: UUID, will: PendingWill) -> None:
        """Take a will once it is due; at once if too many wait already."""
        if len(self.waiting) >= self._most:
            self.take(will)
        else:
            self.waiting[device_id] = will

    def drop(self, device_id: UUID) -> None:
        """Forget the will of a device that is back."""
        self.waiting.pop(device_id, None)

    def take_due(self, now: float) -> None:
        """Take those that are due, of devices that are not back at another endpoint."""
        for device_id in [device for device, will in self._owed.items() if will.due <= now]:
            self.take(self._owed.pop(device_id))
        for device_id in [device for device, will in self.waiting.items() if will.due <= now]:
            will = self.waiting.pop(device_id)
            self._asked.add(will)
            self._spawn(self._take_of_the_absent(will))

    def take(self, will: PendingWill) -> None:
        """Take a will, behind what else its connection brought; whatever its device does."""

        def durable() -> None:
            del self._under_way[durable]
            self._look_for_end()

        self._under_way[durable] = will
        message = will.message
        will.inlet.take(message.channel, message.payload, message.received_at, durable, will.read)

    def let_go(self, done: Done) -> None:
        """Hear that a message could not be taken: if it is a will, it is taken later."""
        will = self._under_way.pop(done, None)
        if will is not None:
            self._owe(will)
            self._look_for_end()

    async def stop(self) -> None:
        """Take all at once: nobody will wait for them any more. What is not durable in 5 s is lost."""
        self._is_stopping = True
        for wills in (self._owed, self.waiting):
            for will in list(wills.values()):
                self.take(will)
            wills.clear()
        self._look_for_end()
        try:
            async with asyncio.timeout(STOP_S):
                await self._nothing_under_way.wait()
        except TimeoutError:
            log.warning("wills not taken", count=len(self._asked) + len(self._under_way))

    def _look_for_end(self) -> None:
        if self._is_stopping and not self._asked and not self._under_way:
            self._nothing_under_way.set()

    def _owe(self, will: PendingWill) -> None:
        device_id = will.inlet.source.device_id
        owed = self._owed.get(device_id)
        if self._is_stopping or (owed is None and len(self._owed) >= self._most):
            log.warning("a will is lost", device=str(device_id))
        elif owed is None or owed.message.received_at < will.message.received_at:
            self._owed[device_id] = _later(will)

    async def _take_of_the_absent(self, will: PendingWill) -> None:
        source, left_at = will.inlet.source, will.message.received_at
        try:
            async with self._transactions.begin(source.tenant_id) as store:
                device = await store.devices.get(source.device_id)
            is_back = device.status is Status.ONLINE and (device.status_at or left_at) > left_at
            if not is_back:
                self.take(will)
        except NotFound:
            pass
        except Exception as error:
            if not is_transient(error):
                raise
            if self._is_stopping:
                self.take(will)
            elif source.device_id not in self.waiting:
                self.postpone(source.device_id, _later(will))
        finally:
            self._asked.discard(will)
            self._look_for_end()


def _later(will: PendingWill) -> PendingWill:
    return replace(will, due=asyncio.get_running_loop().time() + AGAIN_S)
