"""Who was heard lately: written down behind the protocols' back, never once a message."""

from collections import deque
from datetime import timedelta

from libs.common.events.ingest import DeviceStatusChanged
from services.ingest.domain.device import Source, Status
from services.ingest.store.contacts import Heard, Hearing, Hearings, Turned
from services.ingest.usecases.reception import Reception

AT_ONCE = 1_000
"""Devices written in one transaction, at most."""


class Contacts:
    """Writes down when, by what and in which form devices spoke to this process.

    A device without a connection of its own is online from when it is heard until it has been
    silent for as long as its profile says, or else for `offline_after`.
    """

    def __init__(self, hearings: Hearings, reception: Reception, offline_after: timedelta) -> None:
        self._hearings = hearings
        self._reception = reception
        self._offline_after = offline_after

    async def write(self) -> None:
        """Write down who was heard since the last time. What cannot be written now is written later."""
        waiting = deque(self._reception.heard)
        self._reception.heard.clear()
        while waiting:
            some = [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]
            try:
                await self._write([self._heard(source) for source in some])
            except BaseException:
                self._reception.heard.update(some, waiting)
                raise

    async def look_for_silence(self) -> None:
        """Note who has been silent for too long, in any process."""
        while devices := await self._hearings.due(AT_ONCE):
            async with self._hearings.begin({tenant for tenant, _ in devices}) as hearing:
                turned = await hearing.take_due(devices)
                _say(hearing, turned, Status.OFFLINE)
            if len(devices) < AT_ONCE:
                return

    async def _write(self, heard: list[Heard]) -> None:
        async with self._hearings.begin({h.tenant_id for h in heard}) as hearing:
            _say(hearing, await hearing.write(heard), Status.ONLINE)

    def _heard(self, source: Source) -> Heard:
        silence = None if source.profile is None else source.profile.offline_after
        return Heard(
            source.tenant_id,
            source.device_id,
            source.seen_at or self._reception.clock.now(),
            source.protocol,
            source.payload_format,
            silence or self._offline_after,
        )


def _say(hearing: Hearing, turned: list[Turned], status: Status) -> None:
    for device in turned:
        hearing.emit(
            DeviceStatusChanged(
                tenant_id=device.tenant_id,
                at=device.at,
                device_id=device.device_id,
                status=status.value,
                reason=device.reason,
            )
        )
