"""Live connections: who is connected, and what reaches them."""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isnan
from typing import Protocol
from uuid import UUID

import msgspec

from libs.common.errors import TooManyRequests
from libs.common.events.base import Message
from libs.common.events.ingest import TelemetryReceived
from services.gateway.domain.live import (
    AlertUpdate,
    DeviceUpdate,
    Interest,
    Kind,
    LivePoint,
    TelemetryUpdate,
)
from services.gateway.store.lookups import Series
from services.gateway.usecases.places import Places, PlaceSource

FRAMES_WAITING = 1024
BYTES_WAITING = 4 * 1024 * 1024
"""How much waits for a reader; one who does not keep up is cut."""
SERIES_REMEMBERED = 500_000

NORMAL, TRY_LATER, ENDED = 1000, 1013, 4401
"""Close codes: RFC 6455's, IANA's, and our own, which reads like HTTP's 401."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_encode = msgspec.json.Encoder().encode


class Connection:
    """One client's live connection: frames wait in it until they are sent."""

    def __init__(
        self,
        tenant_id: UUID,
        user_id: UUID,
        session_id: UUID,
        allowed: frozenset[Kind],
        reach: frozenset[UUID] | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.user_id = user_id
        self.session_id = session_id
        self.allowed = allowed
        self.reach = reach
        """The device groups that the client is limited to; None: all devices."""
        self.interest = Interest(None, allowed)
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        """Set to code and reason when the connection is to be closed."""
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(FRAMES_WAITING)
        self._bytes = 0

    def offer(self, frame: bytes) -> None:
        """Let a frame be sent in its turn; if too many wait already, cut the connection."""
        if self._frames.full() or self._bytes > BYTES_WAITING:
            self.close(TRY_LATER, "you read too slowly")
            return
        self._frames.put_nowait(frame)
        self._bytes += len(frame)

    def close(self, code: int, reason: str) -> None:
        """Ask for the connection to be closed; the first reason stands."""
        if not self.closed.done():
            self.closed.set_result((code, reason))

    async def next(self) -> bytes:
        """Wait for the next frame."""
        frame = await self._frames.get()
        self._bytes -= len(frame)
        return frame


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Connections that want the same telemetry, may hear the same, and so get the same frames."""

    reach: frozenset[UUID] | None
    connections: list[Connection] = field(default_factory=list)


class Audience:
    """A tenant's connections, as far as they want telemetry; `is_limited` if some may not hear all."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        groups: dict[tuple[frozenset[UUID] | None, frozenset[UUID] | None], Group] = {}
        for connection in connections:
            interest, reach = connection.interest, connection.reach
            if Kind.TELEMETRY in interest.kinds:
                group = groups.setdefault((interest.devices, reach), Group(reach))
                group.connections.append(connection)
        self.is_limited = any(group.reach is not None for group in groups.values())
        self._of_all = [group for (devices, _), group in groups.items() if devices is None]
        self._of_device: dict[UUID, list[Group]] = {}
        for (devices, _), group in groups.items():
            for device_id in devices or ():
                self._of_device.setdefault(device_id, []).append(group)

    def __bool__(self) -> bool:
        return bool(self._of_all or self._of_device)

    def of(self, device_id: UUID, place: frozenset[UUID] | None) -> list[Group]:
        """Return who wants a device's points, and may have them where it is (None: unknown)."""
        wanted = [*self._of_all, *self._of_device.get(device_id, ())]
        if not self.is_limited:
            return wanted
        return [group for group in wanted if _reaches(group.reach, place)]


@dataclass(frozen=True, slots=True)
class Most:
    """How many live connections there may be at this process: of a session, of a user in a tenant,
    of a tenant.
    """

    of_session: int
    of_user: int
    of_tenant: int


class Historian(PlaceSource, Protocol):
    """Knows what the historian's numbers stand for, and where devices are."""

    async def describe_series(self, ids: Sequence[int]) -> list[Series]:
        """Return what the series are, of whichever tenant."""
        ...


class Live:
    """The live connections of this process."""

    def __init__(self, historian: Historian, most: Most) -> None:
        self._source = historian
        self._places = Places(historian)
        self._most = most
        self._connections: dict[UUID, set[Connection]] = {}
        self._audiences: dict[UUID, Audience] = {}
        """By tenant, made when needed; gone when a connection comes, goes or wants something else."""
        self._listeners: dict[int, list[Group]] = {}
        """By series: who wants its points. Found when needed, and gone with any audience."""
        self._series: dict[int, Series] = {}
        self._tenants: dict[int, UUID] = {}
        self.sent = 0

    def join(self, connection: Connection) -> None:
        """Let a connection hear of its tenant. Raises TooManyRequests if there are enough."""
        others = self._connections.get(connection.tenant_id, ())
        for whose, count, most in (
            (
                "session",
                sum(other.session_id == connection.session_id for other in others),
                self._most.of_session,
            ),
            (
                "user",
                sum(other.user_id == connection.user_id for other in others),
                self._most.of_user,
            ),
            ("tenant", len(others), self._most.of_tenant),
        ):
            if count >= most:
                raise TooManyRequests(f"this {whose} has {count} live connections already")
        self._connections.setdefault(connection.tenant_id, set()).add(connection)
        self._forget_audience(connection.tenant_id)

    def subscribe(self, connection: Connection, interest: Interest) -> None:
        """Let a connection hear of this, in place of what it heard of before."""
        connection.interest = interest
        self._forget_audience(connection.tenant_id)

    def leave(self, connection: Connection) -> None:
        """Let it hear no more."""
        neighbours = self._connections.get(connection.tenant_id, set())
        neighbours.discard(connection)
        if not neighbours:
            self._connections.pop(connection.tenant_id, None)
        if not any(other.reach is not None for other in neighbours):
            self._places.forget(connection.tenant_id)
        self._forget_audience(connection.tenant_id)

    def count(self) -> int:
        """Return how many are connected."""
        return sum(len(connections) for connections in self._connections.values())

    def close_session(self, session_id: UUID) -> None:
        """Cut what a session has open."""
        for connection in self._all():
            if connection.session_id == session_id:
                connection.close(ENDED, "the session has ended")

    def close_changed(self, tenant_id: UUID, user_id: UUID | None) -> None:
        """Cut those whose permissions may have changed; they come back with the new ones."""
        for connection in list(self._connections.get(tenant_id, ())):
            if user_id in (None, connection.user_id):
                connection.close(ENDED, "your permissions may have changed; connect again")

    def close_interrupted(self) -> None:
        """Cut everyone: some of what happened did not reach us, so nobody knows the present state."""
        self._places.forget_all()
        self._listeners.clear()
        for connection in self._all():
            connection.close(TRY_LATER, "updates were missed; connect again and read what is now")

    def close_all(self) -> None:
        """Cut everyone: this process ends, another will take them."""
        for connection in self._all():
            connection.close(1012, "the gateway restarts")

    # --- what happens

    async def hear_telemetry(self, messages: Sequence[Message]) -> None:
        """Pass points on to those of their tenants who are connected and want them."""
        for message in messages:
            if any(self._audience(tenant_id) for tenant_id in self._connections):
                await self._pass_on(TelemetryReceived.from_message(message))

    def move(self, tenant_id: UUID, device_ids: Collection[UUID]) -> None:
        """Take note that devices are elsewhere: other connections may hear of them than before."""
        self._places.moved(tenant_id, device_ids)
        self._listeners.clear()

    async def tell(self, tenant_id: UUID, update: DeviceUpdate | AlertUpdate) -> None:
        """Pass an update on to those of the tenant who want it, and may have it."""
        kind = Kind.DEVICE if isinstance(update, DeviceUpdate) else Kind.ALERT
        frame: bytes | None = None
        place: frozenset[UUID] | None = None
        if update.device_id is not None and any(
            connection.reach is not None for connection in self._connections.get(tenant_id, ())
        ):
            await self._places.learn(tenant_id, (update.device_id,))
            place = self._places.of(tenant_id, update.device_id)
        for connection in list(self._connections.get(tenant_id, ())):
            interest = connection.interest
            if kind not in interest.kinds or not _reaches(connection.reach, place):
                continue
            if update.device_id is not None and not interest.wants_device(update.device_id):
                continue
            frame = frame or _encode(update)
            self._send(connection, frame)

    async def _pass_on(self, batch: TelemetryReceived) -> None:
        tenants, series, ts, values, quality = batch.columns()
        connected = self._connections.keys()
        numbers = {*tenants, *(text.tenant for text in batch.texts)}
        if all(n in self._tenants and self._tenants[n] not in connected for n in numbers):
            return
        await self._learn(
            zip(tenants, series, strict=True), ((t.tenant, t.series) for t in batch.texts)
        )
        if any(self._audience(tenant_id).is_limited for tenant_id in self._connections):
            await self._learn_places({*series, *(text.series for text in batch.texts)})
        points: dict[Group, list[LivePoint]] = {}
        known, listeners = self._series, self._listeners
        for row, number in enumerate(series):
            groups = listeners.get(number)
            if groups is None:
                groups = self._find_listeners(number)
            # Of most points nobody wants to hear: no more is done about those than this look.
            if groups:
                which = known[number]
                value: float | bool = values[row]
                if which.kind == 1 and not isnan(value):
                    # A bad point may have no value: NaN, which is neither true nor false.
                    value = value != 0
                moment = _moment(ts[row])
                point = LivePoint(which.device_id, which.metric, moment, value, quality[row])
                for group in groups:
                    points.setdefault(group, []).append(point)
        for text in batch.texts:
            for group in self._find_listeners(text.series):
                which = known[text.series]
                moment = _moment(text.ts)
                points.setdefault(group, []).append(
                    LivePoint(which.device_id, which.metric, moment, text.value, text.quality)
                )
        for group, theirs in points.items():
            frame = _encode(TelemetryUpdate(theirs))
            for connection in group.connections:
                self._send(connection, frame)

    def _find_listeners(self, number: int) -> list[Group]:
        which = self._series.get(number)
        if which is None:
            return []
        audience = self._audience(which.tenant_id)
        place = self._places.of(which.tenant_id, which.device_id) if audience.is_limited else None
        listeners = audience.of(which.device_id, place)
        if place is not None or not audience.is_limited:
            self._listeners[number] = listeners
        return listeners

    async def _learn_places(self, numbers: Iterable[int]) -> None:
        """Know where the devices are of whose series it is not known who hears them."""
        wanted: dict[UUID, set[UUID]] = {}
        for number in numbers:
            which = None if number in self._listeners else self._series.get(number)
            if which is not None and self._audience(which.tenant_id).is_limited:
                wanted.setdefault(which.tenant_id, set()).add(which.device_id)
        for tenant_id, device_ids in wanted.items():
            await self._places.learn(tenant_id, device_ids)

    def _audience(self, tenant_id: UUID) -> Audience:
        audience = self._audiences.get(tenant_id)
        if audience is not None:
            return audience
        audience = Audience(self._connections.get(tenant_id, ()))
        self._audiences[tenant_id] = audience
        return audience

    def _forget_audience(self, tenant_id: UUID) -> None:
        self._audiences.pop(tenant_id, None)
        self._listeners.clear()

    async def _learn(self, *columns: Iterable[tuple[int, int]]) -> None:
        unknown: dict[int, int] = {
            series: tenant
            for column in columns
            for tenant, series in column
            if series not in self._series
        }
        if not unknown:
            return
        if len(self._series) > SERIES_REMEMBERED:
            self._series.clear()
            self._listeners.clear()
        for described in await self._source.describe_series(list(unknown)):
            self._series[described.id] = described
            self._tenants[unknown[described.id]] = described.tenant_id

    def _send(self, connection: Connection, frame: bytes) -> None:
        connection.offer(frame)
        self.sent += 1

    def _all(self) -> list[Connection]:
        return [c for connections in self._connections.values() for c in connections]


def _reaches(reach: frozenset[UUID] | None, place: frozenset[UUID] | None) -> bool:
    """Whether who is limited to groups hears of what is at a place; nobody such, of what is unknown."""
    return reach is None or (place is not None and not reach.isdisjoint(place))


def _moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
