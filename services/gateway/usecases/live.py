"""Live connections: who is connected, and what reaches them."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec

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
        self, tenant_id: UUID, user_id: UUID, session_id: UUID, allowed: frozenset[Kind]
    ) -> None:
        self.tenant_id = tenant_id
        self.user_id = user_id
        self.session_id = session_id
        self.allowed = allowed
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


class SeriesSource(Protocol):
    """Knows what the historian's numbers stand for."""

    async def describe_series(self, ids: Sequence[int]) -> list[Series]:
        """Return what the series are, of whichever tenant."""
        ...


class Live:
    """The live connections of this process."""

    def __init__(self, series: SeriesSource) -> None:
        self._source = series
        self._connections: dict[UUID, set[Connection]] = {}
        self._series: dict[int, Series] = {}
        self._tenants: dict[int, UUID] = {}
        self.sent = 0

    def join(self, connection: Connection) -> None:
        """Let a connection hear of its tenant."""
        self._connections.setdefault(connection.tenant_id, set()).add(connection)

    def leave(self, connection: Connection) -> None:
        """Let it hear no more."""
        neighbours = self._connections.get(connection.tenant_id, set())
        neighbours.discard(connection)
        if not neighbours:
            self._connections.pop(connection.tenant_id, None)

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

    def close_all(self) -> None:
        """Cut everyone: this process ends, another will take them."""
        for connection in self._all():
            connection.close(1012, "the gateway restarts")

    # --- what happens

    async def hear_telemetry(self, messages: Sequence[Message]) -> None:
        """Pass points on to those of their tenants who are connected and want them."""
        for message in messages:
            if any(Kind.TELEMETRY in c.interest.kinds for c in self._all()):
                await self._pass_on(TelemetryReceived.from_message(message))

    def tell(self, tenant_id: UUID, update: DeviceUpdate | AlertUpdate) -> None:
        """Pass an update on to those of the tenant who want it."""
        kind = Kind.DEVICE if isinstance(update, DeviceUpdate) else Kind.ALERT
        frame: bytes | None = None
        for connection in list(self._connections.get(tenant_id, ())):
            interest = connection.interest
            if kind not in interest.kinds:
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
        points: dict[UUID, list[LivePoint]] = {}
        known = self._series
        for row, number in enumerate(series):
            which = known.get(number)
            if which is None or which.tenant_id not in connected:
                continue
            value: float | bool = values[row]
            if which.kind == 1:
                value = value != 0
            points.setdefault(which.tenant_id, []).append(
                LivePoint(which.device_id, which.metric, _moment(ts[row]), value, quality[row])
            )
        for text in batch.texts:
            which = known.get(text.series)
            if which is not None and which.tenant_id in connected:
                points.setdefault(which.tenant_id, []).append(
                    LivePoint(
                        which.device_id, which.metric, _moment(text.ts), text.value, text.quality
                    )
                )
        for tenant_id, theirs in points.items():
            self._send_points(tenant_id, theirs)

    def _send_points(self, tenant_id: UUID, points: Sequence[LivePoint]) -> None:
        everything: bytes | None = None
        for connection in list(self._connections.get(tenant_id, ())):
            interest = connection.interest
            if Kind.TELEMETRY not in interest.kinds:
                continue
            if interest.devices is None:
                everything = everything or _encode(TelemetryUpdate(points))
                self._send(connection, everything)
            elif wanted := interest.of(points):
                self._send(connection, _encode(TelemetryUpdate(wanted)))

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
        for described in await self._source.describe_series(list(unknown)):
            self._series[described.id] = described
            self._tenants[unknown[described.id]] = described.tenant_id

    def _send(self, connection: Connection, frame: bytes) -> None:
        connection.offer(frame)
        self.sent += 1

    def _all(self) -> list[Connection]:
        return [c for connections in self._connections.values() for c in connections]


def _moment(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
