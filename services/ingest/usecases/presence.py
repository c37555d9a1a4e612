"""Who is online: what an endpoint sees, noted behind its back, and what is left of one that died."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID, uuid4

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.events.ingest import DevicesTakenOver, DeviceStatusChanged
from libs.common.jobs import Ticker
from services.ingest.domain.device import Source, Status
from services.ingest.domain.presence import Noted, Seen, after
from services.ingest.store.connections import Connections, DeviceKey, Noting

log = structlog.get_logger(__name__)

AT_ONCE = 1_000
"""Devices noted in one transaction, at most."""
PAUSE_S = 1.0
STOP_S = 5.0
RENEWALS = 4
"""How often a lease is renewed while it lasts."""
DIED = "connection lost: the endpoint died"
STOPPED = "the server is going down"


class LeaseEnded(Exception):
    """The endpoint's lease has ended: it needs another before anything is noted for it."""


class _Connected(NamedTuple):
    by: object
    seen: Seen


class Presence:
    """Notes who comes and goes at one endpoint; only the newest word of each device counts.

    A device may be here by several connections at once, its own and those of connectors. It is
    online until the last of them has ended.

    What waits is written together, for all tenants. What cannot be written now is written later.
    The endpoint holds a lease as long as it lives; when another's has ended, any endpoint notes
    that the devices it leaves behind are offline.
    """

    def __init__(self, connections: Connections, clock: Clock, lease: timedelta) -> None:
        self._connections = connections
        self._clock = clock
        self._here: dict[UUID, list[_Connected]] = {}
        """How each device came that is connected here, the newest of its connections last."""
        self._words: dict[UUID, Seen] = {}
        """What is not written yet, by device."""
        self._endpoint_id: UUID | None = None
        self._turn = asyncio.Lock()
        self._some = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._ticker = Ticker("ingest.presence", lease / RENEWALS, self.look_around)
        self._stopping = False
        self.on_taken_over: list[Callable[[UUID], None]] = []
        """Called with a device's id when it has a newer connection to another process."""

    def came(self, source: Source, by: object, reason: str) -> None:
        """Remember that a device connected here; `by` is the connection, whatever object that is."""
        now = self._clock.now()
        seen = Seen(source.tenant_id, source.device_id, Status.ONLINE, reason, now, now)
        here = self._here.setdefault(source.device_id, [])
        here[:] = [each for each in here if each.by is not by]
        here.append(_Connected(by, seen))
        self._note(seen)

    def went(self, source: Source, by: object, reason: str) -> None:
        """Remember that this connection of a device's is over, if it came by it."""
        here = self._here.get(source.device_id, [])
        left = [each for each in here if each.by is not by]
        if len(left) == len(here):
            return
        newest, now = here[-1].seen, self._clock.now()
        if not left:
            del self._here[source.device_id]
            self._note(replace(newest, status=Status.OFFLINE, reason=reason, at=now))
            return
        if here[-1].by is by:
            # Dated as the newest was: of an older connection the registry would believe no end.
            older = replace(left[-1].seen, at=now, connected_at=newest.connected_at)
            left[-1] = left[-1]._replace(seen=older)
            self._note(older)
        here[:] = left

    def taken_over(self, endpoint_id: UUID | None, connected: Mapping[UUID, datetime]) -> None:
        """Hear that devices connected to an endpoint: older connections of theirs here are over."""
        if endpoint_id == self._endpoint_id:
            return
        for device_id, connected_at in connected.items():
            here = self._here.get(device_id)
            if here is not None and here[-1].seen.connected_at < connected_at:
                for call in self.on_taken_over:
                    call(device_id)

    async def look_for_takeovers(self) -> None:
        """Look which devices have connected elsewhere since: that they did may not have been heard.

        Raises what is transient.
        """
        here = [(each[-1].seen.tenant_id, device_id) for device_id, each in self._here.items()]
        for start in range(0, len(here), AT_ONCE):
            some = here[start : start + AT_ONCE]
            async with self._connections.begin({tenant for tenant, _ in some}) as noting:
                noted = await noting.noted(some)
            for (_, device_id), was in noted.items():
                if was.connected_at is not None:
                    self.taken_over(was.endpoint_id, {device_id: was.connected_at})

    def start(self) -> None:
        """Take a lease, and begin to write."""
        self._stopping = False
        self._writer = asyncio.create_task(self._write_forever(), name="ingest.presence")
        self._ticker.start()

    async def stop(self) -> None:
        """Write what is there, once, and give the lease up; within 5 s, and then others see to it."""
        if self._writer is None:
            return
        await self._ticker.stop()
        self._stopping = True
        self._some.set()
        _, late = await asyncio.wait([self._writer], timeout=STOP_S)
        for task in late:
            task.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        self._writer = None
        if self._endpoint_id is None:
            return
        endpoint_id, self._endpoint_id = self._endpoint_id, None
        try:
            async with asyncio.timeout(STOP_S):
                await self._connections.expire(endpoint_id)
                await self._clear_up(endpoint_id, STOPPED)
        except Exception:
            # A process that ends has done what it could: the lease runs out by itself.
            log.exception("the lease is left to run out", endpoint=str(endpoint_id))

    async def look_around(self) -> None:
        """Renew the lease, and clear up after endpoints whose lease has ended."""
        async with self._turn:
            if self._endpoint_id is not None and not await self._connections.renew(
                self._endpoint_id
            ):
                self._endpoint_id = None
            own = await self._lease()
        for endpoint_id in await self._connections.expired(own):
            await self._clear_up(endpoint_id, DIED)

    def _note(self, seen: Seen) -> None:
        self._words.pop(seen.device_id, None)
        self._words[seen.device_id] = seen
        self._some.set()

    async def _lease(self) -> UUID:
        """Return the endpoint's id, which is its lease; a new one says anew who is here."""
        if self._endpoint_id is None:
            endpoint_id = uuid4()
            await self._connections.open(endpoint_id)
            self._endpoint_id = endpoint_id
            log.info("the endpoint has a lease", endpoint=str(endpoint_id))
            now = self._clock.now()
            for device_id, here in self._here.items():
                self._words.setdefault(device_id, replace(here[-1].seen, at=now))
            self._some.set()
        return self._endpoint_id

    async def _write_forever(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            while self._words:
                words = [self._words[device] for device in list(self._words)[:AT_ONCE]]
                for seen in words:
                    del self._words[seen.device_id]
                try:
                    async with self._turn:
                        await self._write(words, await self._lease())
                except LeaseEnded:
                    self._take_back(words)
                except Exception as error:
                    self._take_back(words)
                    if is_transient(error):
                        log.warning("statuses wait for the database", error=str(error))
                    else:
                        # A fault of ours, and not a word's: all of them wait until it is mended.
                        log.exception("no status can be noted")
                    if self._stopping:
                        return
                    await asyncio.sleep(PAUSE_S)
            if self._stopping:
                return

    def _take_back(self, words: Sequence[Seen]) -> None:
        newer, self._words = self._words, {}
        for seen in words:
            self._words[seen.device_id] = seen
        self._words.update(newer)

    async def _write(self, words: Sequence[Seen], endpoint_id: UUID) -> None:
        """Note what was seen. Raises LeaseEnded, and what is transient: then not all of it is noted."""
        seen = {(word.tenant_id, word.device_id): word for word in words}
        try:
            async with self._connections.begin({tenant for tenant, _ in seen}) as noting:
                if not await noting.holds(endpoint_id):
                    self._endpoint_id = None
                    raise LeaseEnded
                await _note_all(noting, seen, await noting.noted(seen), endpoint_id)
        except LeaseEnded:
            raise
        except Exception as error:
            if is_transient(error):
                raise
            if len(words) == 1:
                # A fault of ours. It costs this word alone, and the device's next one is heard.
                log.exception("a status was not noted", device=str(words[0].device_id))
                return
            half = len(words) // 2
            await self._write(words[:half], endpoint_id)
            await self._write(words[half:], endpoint_id)

    async def _clear_up(self, endpoint_id: UUID, reason: str) -> None:
        """Note that what an endpoint still holds is offline, and forget the endpoint."""
        gone = 0
        while True:
            devices = await self._connections.at(endpoint_id, AT_ONCE)
            async with self._connections.begin({tenant for tenant, _ in devices}) as noting:
                if not await noting.clears_up(endpoint_id):
                    return  # another is at it
                if not devices:
                    # Under the lock nothing is written for it any more: what is not there now never will be.
                    if await self._connections.at(endpoint_id, 1):
                        continue
                    await noting.forget(endpoint_id)
                    break
                noted = await noting.noted(devices)
                at = self._clock.now()
                seen = {
                    (tenant, device): Seen(
                        tenant, device, Status.OFFLINE, reason, at, was.connected_at or at
                    )
                    for (tenant, device), was in noted.items()
                    if was.endpoint_id == endpoint_id
                }
                await _note_all(noting, seen, noted, endpoint_id)
                gone += len(seen)
        log.info("an endpoint is gone", endpoint=str(endpoint_id), devices=gone, reason=reason)


async def _note_all(
    noting: Noting,
    seen: dict[DeviceKey, Seen],
    noted: dict[DeviceKey, Noted],
    endpoint_id: UUID,
) -> None:
    """Note what was seen of the devices that there are, and say what is new."""
    changed = {}
    taken_over: dict[UUID, dict[UUID, datetime]] = {}
    for key, word in seen.items():
        was = noted.get(key)
        if was is None:
            continue  # removed meanwhile
        now = after(was, word, endpoint_id)
        if now == was:
            continue
        changed[key] = now
        if was.endpoint_id not in (None, endpoint_id) and now.endpoint_id == endpoint_id:
            taken_over.setdefault(word.tenant_id, {})[word.device_id] = word.connected_at
        if (now.status, now.reason) != (was.status, was.reason):
            noting.emit(
                DeviceStatusChanged(
                    tenant_id=word.tenant_id,
                    at=word.at,
                    device_id=word.device_id,
                    status=now.status.value,
                    reason=now.reason,
                )
            )
    for tenant_id, connected in taken_over.items():
        noting.emit(
            DevicesTakenOver(
                tenant_id=tenant_id,
                at=max(connected.values()),
                endpoint_id=endpoint_id,
                connected=connected,
            )
        )
    if changed:
        await noting.save(changed)
