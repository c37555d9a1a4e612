"""Wills of devices that are gone, taken unless they are back in time."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound
from services.ingest.domain.device import Status
from services.ingest.protocols.mqtt.actions import Deliver
from services.ingest.protocols.mqtt.reading import reader_for
from services.ingest.store.store import IngestStore
from services.ingest.usecases.inlet import Inlet, nothing


@dataclass(frozen=True, slots=True)
class PendingWill:
    """A will that is to be taken unless its device is back before `due` (the loop's clock)."""

    message: Deliver
    inlet: Inlet
    due: float


class Wills:
    """The wills that wait, one a device and `most` in all."""

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

    def postpone(self, device_id: UUID, will: PendingWill) -> None:
        """Take a will once it is due; at once if too many wait already."""
        if len(self.waiting) >= self._most:
            _take(will)
        else:
            self.waiting[device_id] = will

    def drop(self, device_id: UUID) -> None:
        """Forget the will of a device that is back."""
        self.waiting.pop(device_id, None)

    def take_due(self, now: float) -> None:
        """Take those that are due, of devices that are not back at another endpoint."""
        for device_id in [device for device, will in self.waiting.items() if will.due <= now]:
            self._spawn(self._take_of_the_absent(self.waiting.pop(device_id)))

    def take_all(self) -> None:
        """Take all at once: nobody will wait for them any more."""
        for will in self.waiting.values():
            _take(will)
        self.waiting.clear()

    async def _take_of_the_absent(self, will: PendingWill) -> None:
        source, left_at = will.inlet.source, will.message.received_at
        try:
            async with self._transactions.begin(source.tenant_id) as store:
                device = await store.devices.get(source.device_id)
        except NotFound:
            return
        except Exception as error:
            if not is_transient(error):
                raise
            # Better a will too many than none.
            _take(will)
            return
        is_back = device.status is Status.ONLINE and (device.status_at or left_at) > left_at
        if not is_back:
            _take(will)


def _take(will: PendingWill) -> None:
    message = will.message
    read = reader_for(will.inlet.source, message.properties, message.payload)
    will.inlet.take(message.channel, message.payload, message.received_at, nothing, read)
