"""The MQTT endpoint: sockets, TLS and time around the pure session.

It is no broker. A device publishes to its own topics and subscribes to its own commands; nothing
is routed between devices. A PUBACK leaves when the message is durable on the bus, never before.
When the platform has enough under way, all connections stop being read: the devices feel it as
TCP back-pressure, and memory stays bounded.
"""

import asyncio
import os
import socket
import ssl
import sys
from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import cast
from uuid import UUID

import structlog

from libs.common.addresses import origin_of
from libs.common.auth.guesses import Guesses
from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.errors import AppError, TooManyRequests, Unauthenticated
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Decoded, Window, decode
from services.ingest.domain.token import hash_token
from services.ingest.protocols.mqtt.codec import ConnectCode
from services.ingest.protocols.mqtt.session import (
    Action,
    Authenticate,
    Close,
    Deliver,
    Limits,
    Receipts,
    Send,
    Session,
)
from services.ingest.usecases.presence import Presence
from services.ingest.usecases.reports import Reports
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Done, Intake

log = structlog.get_logger(__name__)

TICK_S = 1.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
REMEMBERED_RECEIPTS = 2_000
CLOSING_GRACE_S = 2.0
DEAD_PEER_S = 120


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections one process bears."""

    connections: int
    strangers: int
    """Of these, such as have not logged in. They are not told from each other, so when they are
    too many a device may have to come again; those logged in are not concerned."""
    strangers_per_address: int


class Endpoint:
    """Listens for devices, and knows those connected."""

    def __init__(
        self,
        sources: Sources,
        presence: Presence,
        intake: Intake,
        reports: Reports,
        clock: Clock,
        *,
        limits: Limits,
        past: timedelta,
        ahead: timedelta,
        capacity: Capacity,
        guesses: Guesses,
    ) -> None:
        self.sources = sources
        self.presence = presence
        self.intake = intake
        self.reports = reports
        self.clock = clock
        self.limits = limits
        self._past = past
        self._ahead = ahead
        self._capacity = capacity
        self.guesses = guesses
        self._servers: list[asyncio.Server] = []
        self._ticker: asyncio.Task[None] | None = None
        self.connections: set[Connection] = set()
        self._strangers: dict[Connection, str] = {}
        """Those that have not logged in, with their origin."""
        self._strangers_of: Counter[str] = Counter()
        self._turned_away = 0
        self.by_device: dict[UUID, Connection] = {}
        self.receipts: dict[UUID, Receipts] = {}
        """Of devices that are gone, for those that come back and send again what was not acknowledged."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.window = Window.around(clock.now(), past=past, ahead=ahead)
        """Which times are believed; renewed every second."""
        self.received_messages = 0
        sources.on_revoked.append(self.cut)
        intake.on_full.append(self._settle_all)
        intake.on_room.append(self._settle_all)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Open a port and return its number (for port 0, the one that was free)."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            partial(Connection, self),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=self.limits.connect_timeout if tls else None,
            backlog=1024,
        )
        for listening in server.sockets:
            _find_dead_peers(listening.fileno())
        self._servers.append(server)
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick_forever(), name="ingest.mqtt.ticks")
        number: int = server.sockets[0].getsockname()[1]
        log.info("mqtt listens", host=host, port=number, tls=tls is not None)
        return number

    async def stop(self) -> None:
        """Take no new connections, close those there are, end."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.end("the server is going down")
        if self._ticker is not None:
            self._ticker.cancel()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, *filter(None, [self._ticker]), return_exceptions=True)
        self._ticker = None
        self._servers.clear()

    def cut(self, device_id: UUID, reason: str) -> None:
        """Close a device's connection."""
        connection = self.by_device.get(device_id)
        if connection is not None:
            connection.end(reason)

    def admit(self, connection: "Connection", origin: str) -> bool:
        """Take a connection in, as a stranger, if there is room for it."""
        capacity = self._capacity
        if (
            len(self.connections) >= capacity.connections
            or len(self._strangers) >= capacity.strangers
            or self._strangers_of[origin] >= capacity.strangers_per_address
        ):
            self._turned_away += 1
            return False
        self.connections.add(connection)
        self._strangers[connection] = origin
        self._strangers_of[origin] += 1
        return True

    def acquaint(self, connection: "Connection") -> None:
        """Note that a connection has logged in, or has ended: it is no stranger any more."""
        origin = self._strangers.pop(connection, None)
        if origin is not None:
            self._strangers_of[origin] -= 1
            if not self._strangers_of[origin]:
                del self._strangers_of[origin]

    def keep_receipts(self, device_id: UUID, receipts: Receipts) -> None:
        """Remember what a device that is gone may send again; the oldest are forgotten."""
        self.receipts.pop(device_id, None)
        self.receipts[device_id] = receipts
        if len(self.receipts) > REMEMBERED_RECEIPTS:
            del self.receipts[next(iter(self.receipts))]

    def spawn(self, work: "asyncio.Task[None]") -> None:
        """Hold on to a task until it is done; it ends with the endpoint."""
        self.tasks.add(work)
        work.add_done_callback(self.tasks.discard)

    def _settle_all(self) -> None:
        # All at once: each that were only stopped by its own next bytes would bring them first.
        for connection in list(self.connections):
            connection.settle_reading()

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            at, now = self.clock.now(), loop.time()
            self.window = Window.around(at, past=self._past, ahead=self._ahead)
            if self._turned_away:
                log.warning("too many connections, some turned away", count=self._turned_away)
                self._turned_away = 0
            for connection in list(self.connections):
                try:
                    connection.tick(at, now)
                except Exception:
                    # The others' deadlines, and the window of time, hang on this task.
                    log.exception("a connection's deadline could not be looked at")


class Connection(asyncio.Protocol):
    """One device's socket."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._session = Session(endpoint.limits, now=self._loop.time())
        self._transport: asyncio.Transport | None = None
        self._origin = ""
        self._source: Source | None = None
        self._is_reading = True
        self._is_congested = False
        self._safe: list[int] = []
        # Messages behind one that needs the database (a new metric, an alert), in order.
        self._waiting: deque[Deliver] | None = None

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports keep asyncio's promise without deriving from its class.
        self._transport = transport = cast(asyncio.Transport, transport)
        self._origin = origin_of(transport.get_extra_info("peername")[0])
        if not self._endpoint.admit(self, self._origin):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._carry_out(self._session.receive(data, self._endpoint.clock.now(), self._loop.time()))
        self.settle_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        """Read no more from a peer that does not read its answers; its keep-alive runs on."""
        self._is_congested = True
        self.settle_reading()

    def resume_writing(self) -> None:
        """Read on."""
        self._is_congested = False
        self.settle_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._carry_out(self._session.connection_lost(self._endpoint.clock.now()))
        self._leave("connection lost")

    # --- from the endpoint

    def tick(self, at: datetime, now: float) -> None:
        """Look at the deadline."""
        self._carry_out(self._session.tick(at, now))

    def end(self, reason: str) -> None:
        """Close the connection from our side."""
        self._carry_out(self._session.close(reason, self._endpoint.clock.now()))

    def settle_reading(self) -> None:
        """Read from the socket if, and only if, more is welcome."""
        if self._waiting is not None or self._endpoint.intake.is_full:
            self._session.pause()
        else:
            self._session.resume(self._loop.time())
        wanted = self._session.is_reading and not self._is_congested
        if wanted is self._is_reading or self._transport is None or self._transport.is_closing():
            return
        self._is_reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # --- actions

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Deliver):
                self._take(action)
            elif isinstance(action, Send):
                self._write(action.data)
            elif isinstance(action, Authenticate):
                self._endpoint.spawn(
                    self._loop.create_task(self._authenticate(action.device_id, action.password))
                )
            elif isinstance(action, Close):
                self._close(action)

    def _take(self, message: Deliver) -> None:
        if self._source is None:
            return
        self._endpoint.received_messages += 1
        if self._waiting is not None:
            self._waiting.append(message)
            return
        if message.channel is not Channel.TELEMETRY or not self._take_telemetry(message):
            self._waiting = deque([message])
            self._endpoint.spawn(self._loop.create_task(self._work_off()))

    def _take_telemetry(self, message: Deliver) -> bool:
        """Hand a message's points on; False if a new series must be registered first."""
        assert self._source is not None
        intake = self._endpoint.intake
        payload = message.payload
        try:
            decoded = decode(payload, message.received_at, self._endpoint.window)
        except AppError as error:
            self._refuse(message, error.slug, error.detail)
            return True
        if not intake.knows(self._source, decoded.points):
            return False
        intake.add(self._source, decoded, self._done(message))
        return True

    async def _work_off(self) -> None:
        """Take the messages that wait, one after the other, until none is left."""
        assert self._waiting is not None
        pause_s = FIRST_PAUSE_S
        while self._waiting:
            message = self._waiting[0]
            try:
                await self._take_slowly(message)
            except Exception as error:
                if not is_transient(error):
                    # Ours to find, not the device's to suffer: kept with its reason.
                    log.exception("a message could not be taken")
                    self._refuse(message, "internal", "the platform failed to take it")
                elif self._session.is_closed:
                    # Not acknowledged, so the device has them still; a will is lost.
                    log.warning("messages not taken", count=len(self._waiting))
                    break
                else:
                    await asyncio.sleep(pause_s)
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                    continue
            pause_s = FIRST_PAUSE_S
            self._waiting.popleft()
        self._waiting = None
        self.settle_reading()

    async def _take_slowly(self, message: Deliver) -> None:
        assert self._source is not None
        endpoint = self._endpoint
        if message.channel is Channel.TELEMETRY:
            if not self._take_telemetry(message):
                decoded: Decoded = decode(message.payload, message.received_at, endpoint.window)
                await endpoint.intake.register(self._source, decoded)
                endpoint.intake.add(self._source, decoded, self._done(message))
            return
        try:
            await endpoint.reports.take(
                self._source, message.channel, message.payload, message.received_at
            )
        except AppError as error:
            if is_transient(error):
                raise
            self._refuse(message, error.slug, error.detail)
            return
        self._done(message)()

    def _refuse(self, message: Deliver, reason: str, detail: str) -> None:
        assert self._source is not None
        self._endpoint.intake.refuse_message(
            self._source,
            reason,
            detail,
            message.payload,
            self._done(message),
            received_at=message.received_at,
            channel=message.channel,
        )

    def _done(self, message: Deliver) -> Done:
        if message.qos == 0:
            return _nothing
        return partial(self._durable, message.packet_id)

    def _durable(self, packet_id: int) -> None:
        """A message is safe: acknowledge it, together with those of the same moment."""
        if not self._safe:
            self._loop.call_soon(self._acknowledge)
        self._safe.append(packet_id)

    def _acknowledge(self) -> None:
        safe, self._safe = self._safe, []
        if not self._session.is_closed:
            self._write(self._session.acknowledge(safe, self._loop.time()))
            if not self._is_reading:
                self.settle_reading()

    async def _authenticate(self, device_id: UUID, password: bytes) -> None:
        endpoint = self._endpoint
        token = password.decode("ascii", "replace")
        try:
            source = await self._log_in(token)
            if source.device_id != device_id:
                raise Unauthenticated("the token is another device's")
        except Unauthenticated as error:
            log.info("mqtt login refused", device=str(device_id), reason=error.detail)
            self._carry_out(self._session.refused(ConnectCode.BAD_CREDENTIALS))
            return
        except AppError as error:
            log.warning("mqtt login not possible", device=str(device_id), reason=error.detail)
            self._carry_out(self._session.refused(ConnectCode.SERVER_UNAVAILABLE))
            return
        except Exception:
            # Ours to find. Without an answer the device would wait, and then be told of a timeout.
            log.exception("mqtt login failed", device=str(device_id))
            self._carry_out(self._session.refused(ConnectCode.SERVER_UNAVAILABLE))
            return
        if self._session.is_closed:
            return
        older = endpoint.by_device.get(device_id)
        if older is not None and older is not self:
            older.end("the device connected again")
        self._source = source
        endpoint.acquaint(self)
        endpoint.by_device[device_id] = self
        endpoint.presence.came(source, "connected by MQTT")
        self._carry_out(
            self._session.accepted(
                self._loop.time(), receipts=endpoint.receipts.pop(device_id, None)
            )
        )
        self.settle_reading()

    async def _log_in(self, token: str) -> Source:
        """Return the device whose token it is, as Sources.login; too many guesses must wait."""
        guesses = self._endpoint.guesses
        token_hash = hash_token(token)
        if guesses.is_refused(token_hash, self._loop.time()):
            raise Unauthenticated("the token is not valid")
        if guesses.wait_s(token_hash, self._origin, self._loop.time()) > 0:
            raise TooManyRequests("too many tokens from its address were not valid")
        try:
            source = await self._endpoint.sources.login(token)
        except Unauthenticated:
            guesses.failed(token_hash, self._origin, self._loop.time())
            raise
        guesses.passed(token_hash)
        return source

    def _close(self, action: Close) -> None:
        log.info(
            "mqtt connection ends",
            device=str(self._session.device_id or ""),
            cause=action.cause.value,
            reason=action.reason,
        )
        self._leave(action.reason)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            # A peer that no longer reads must not keep the socket open.
            self._loop.call_later(CLOSING_GRACE_S, self._transport.abort)

    def _leave(self, reason: str) -> None:
        endpoint = self._endpoint
        endpoint.connections.discard(self)
        endpoint.acquaint(self)
        source = self._source
        if source is not None and endpoint.by_device.get(source.device_id) is self:
            del endpoint.by_device[source.device_id]
            endpoint.keep_receipts(source.device_id, self._session.receipts)
            endpoint.presence.went(source, reason)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _find_dead_peers(listening: int) -> None:
    """Let the kernel end connections whose peer is gone without a word, for devices without keep-alive.

    Set on the listening socket, whose options those it accepts inherit.
    """
    with socket.socket(fileno=os.dup(listening)) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_PEER_S // 2)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_PEER_S // 8)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_S * 1000)


def _nothing() -> None:
    """What is done about a message that wants no acknowledgement."""
