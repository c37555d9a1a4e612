"""The MQTT endpoint: sockets, TLS and time around the pure session.

It is no broker. A device publishes to its own topics and subscribes to its own commands; nothing
is routed between devices. A PUBACK leaves when the message is durable on the bus, never before.
When the platform has enough under way, all connections stop being read: the devices feel it as
TCP back-pressure, and memory stays bounded.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, cast
from uuid import UUID

import structlog

from libs.common.addresses import origin_of
from libs.common.errors import AppError, Unauthenticated
from services.ingest.domain.attribute import Scope
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing
from services.ingest.domain.credential import CredentialKind, fingerprint_of
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Read, decode
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.protocols.mqtt.actions import (
    Action,
    Authenticate,
    Close,
    CommandAcknowledged,
    Deliver,
    Keep,
    Room,
    SaidAside,
    Send,
    Subscribed,
    Unsubscribed,
)
from services.ingest.protocols.mqtt.admission import Admission, Capacity
from services.ingest.protocols.mqtt.asides import Asides, Desk, Party
from services.ingest.protocols.mqtt.edge_node import EdgeNode
from services.ingest.protocols.mqtt.gateway_api import GatewayApi
from services.ingest.protocols.mqtt.keeper import Keeper
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.protocols.mqtt.memory import Receipts
from services.ingest.protocols.mqtt.packets import Properties, ReasonCode
from services.ingest.protocols.mqtt.reading import form_of, read_by, reader_of
from services.ingest.protocols.mqtt.session import Session
from services.ingest.protocols.mqtt.tls import (
    BACKLOG,
    Certificate,
    TlsListener,
    certificate_of,
    listen_at,
)
from services.ingest.protocols.mqtt.topics import Aside, Topics
from services.ingest.protocols.mqtt.way_down import WayDown
from services.ingest.protocols.mqtt.wills import PendingWill, Wills
from services.ingest.usecases.inlet import Inlet, nothing
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

REMEMBERED_RECEIPTS = 2_000
CLOSING_GRACE_S = 2.0
DEAD_PEER_S = 120
TOLD_AT_ONCE = 1_000
"""Devices whose attributes are read with one query, at most."""


SPEAKERS: dict[Aside, Callable[[Asides], Party]] = {
    Aside.EDGE_NODE: EdgeNode,
    Aside.GATEWAY: GatewayApi,
}

Over = Callable[["Connection"], asyncio.Protocol]
"""Makes what MQTT travels in, and what is a transport to the connection: a WebSocket."""


class Endpoint:
    """Listens for devices, and knows those connected."""

    def __init__(
        self,
        reception: Reception,
        *,
        limits: Limits,
        capacity: Capacity,
        keeper: Keeper,
        desk: Desk,
    ) -> None:
        self.reception = reception
        self.keeper = keeper
        self.desk = desk
        self.clock = reception.clock
        self.limits = limits
        self._servers: list[asyncio.Server | TlsListener] = []
        self.admission: Admission[Connection] = Admission(capacity)
        self.connections = self.admission.connections
        self.wills = Wills(desk.transactions, reception.spawn, capacity.connections)
        self.by_device: dict[UUID, Connection] = {}
        self.receipts: dict[UUID, Receipts] = {}
        """Of devices that are gone, for those that come back and send again what was not acknowledged."""
        reception.sources.on_revoked.append(self.cut)
        reception.presence.on_taken_over.append(self.give_up)
        reception.intake.on_full.append(self._settle_all)
        reception.intake.on_room.append(self._settle_all)
        reception.on_tick.append(self._tick)

    async def listen(
        self, host: str, port: int, tls: Certificate | None = None, over: Over | None = None
    ) -> int:
        """Open a port and return its number (for port 0, the one that was free).

        `over` makes what MQTT travels in on this port, if anything: a WebSocket.
        """

        def answer() -> tuple[Connection, asyncio.Protocol]:
            connection = Connection(self)
            return connection, connection if over is None else over(connection)

        if tls is None:
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: answer()[1], host, port, backlog=BACKLOG)
            for listening in server.sockets:
                _find_dead_peers(listening.fileno())
            self._servers.append(server)
            number: int = server.sockets[0].getsockname()[1]
        else:
            own = listen_at(host, port)
            _find_dead_peers(own.fileno())
            number = own.getsockname()[1]
            reception, within_s = self.reception, self.limits.connect_timeout
            self._servers.append(TlsListener(own, tls, answer, within_s, reception.spawn))
        log.info(
            "mqtt listens",
            host=host,
            port=number,
            tls=tls is not None,
            over=getattr(over, "__name__", None),
        )
        return number

    async def stop(self) -> None:
        """Take no new connections, close those there are, end."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.end("the server is going down", ReasonCode.SERVER_SHUTTING_DOWN)
        self._servers.clear()
        await self.wills.stop()
        await self.keeper.stop()

    def cut(self, device_id: UUID, reason: str) -> None:
        """Close the connection of a device that may not go on."""
        connection = self.by_device.get(device_id)
        if connection is not None:
            connection.end(reason, ReasonCode.NOT_AUTHORIZED)
        asides = self.desk.behind.get(device_id)
        if asides is not None:
            asides.forget(device_id)

    def gateway_changed(self, device_id: UUID) -> None:
        """Ask anew what a device may do for others."""
        connection = self.by_device.get(device_id)
        if connection is not None:
            connection.gateway_changed()

    def look_again(self) -> None:
        """Ask anew what all devices may do for others: changes may have been missed."""
        for connection in list(self.by_device.values()):
            connection.gateway_changed()

    async def attributes_changed(self, tenant_id: UUID, device_id: UUID, names: list[str]) -> None:
        """Tell a device that is connected, or whose gateway is, what was set for it."""
        if device_id not in self.by_device and device_id not in self.desk.behind:
            return
        async with self.desk.transactions.begin(tenant_id) as store:
            shared = await store.attributes.get(device_id, Scope.SHARED)
        values = {name: shared[name] for name in names if name in shared}
        self._tell_attributes(device_id, values, [name for name in names if name not in shared])

    async def tell_all_attributes(self) -> None:
        """Tell all devices that are connected, or whose gateways are, all that is set for them:
        changes may have been missed. Of what was removed meanwhile they learn when they ask.

        Raises what is transient.
        """
        tenants: dict[UUID, list[UUID]] = {}
        for device_id in {*self.by_device, *self.desk.behind}:
            source = self.reception.sources.known(device_id)
            if source is not None:
                tenants.setdefault(source.tenant_id, []).append(device_id)
        for tenant_id, devices in tenants.items():
            for start in range(0, len(devices), TOLD_AT_ONCE):
                some = devices[start : start + TOLD_AT_ONCE]
                async with self.desk.transactions.begin(tenant_id) as store:
                    shared = await store.attributes.of_devices(some, Scope.SHARED)
                for device_id, values in shared.items():
                    if values:
                        self._tell_attributes(device_id, values, [])

    def _tell_attributes(self, device_id: UUID, values: dict[str, Any], gone: list[str]) -> None:
        connection, asides = self.by_device.get(device_id), self.desk.behind.get(device_id)
        if connection is not None:
            topics = connection.topics
            connection.tell(topics.attributes, topics.changed_attributes(values, gone))
        if asides is not None:
            asides.attributes_changed(device_id, values, gone)

    def give_up(self, device_id: UUID) -> None:
        """Close the connection of a device that has come by another one."""
        connection = self.by_device.get(device_id)
        if connection is not None:
            connection.end("the device connected again", ReasonCode.SESSION_TAKEN_OVER)

    def keep_receipts(self, device_id: UUID, receipts: Receipts) -> None:
        """Remember what a device that is gone may send again; the oldest are forgotten."""
        self.receipts.pop(device_id, None)
        self.receipts[device_id] = receipts
        if len(self.receipts) > REMEMBERED_RECEIPTS:
            del self.receipts[next(iter(self.receipts))]

    def _settle_all(self) -> None:
        # All at once: each that were only stopped by its own next bytes would bring them first.
        for connection in list(self.connections):
            connection.settle_reading()

    def _tick(self) -> None:
        at, now = self.clock.now(), asyncio.get_running_loop().time()
        self.admission.tell_turned_away()
        self.wills.take_due(now)
        for connection in list(self.connections):
            try:
                connection.tick(at, now)
            except Exception:
                # The others' deadlines hang on this task.
                log.exception("a connection's deadline could not be looked at")


class Connection(asyncio.Protocol):
    """One device's socket."""

    __slots__ = (
        "_asides",
        "_endpoint",
        "_inlet",
        "_is_accepted",
        "_is_congested",
        "_is_kept",
        "_is_reading",
        "_loop",
        "_origin",
        "_properties",
        "_read",
        "_safe",
        "_session",
        "_transport",
        "_unkept",
        "_way_down",
        "_written",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._session = Session(endpoint.limits, now=self._loop.time())
        self._transport: asyncio.Transport | None = None
        self._origin = ""
        self._inlet: Inlet | None = None
        self._is_reading = True
        self._is_congested = False
        self._is_accepted = False
        self._is_kept = False
        self._safe: list[int] = []
        self._unkept: list[bytes] = []
        """Answers that wait for the session to be written down."""
        # What the last message said of its payload, and how to read it; mostly the next says the same.
        self._properties: Properties | None = None
        self._read: Read = decode
        self._written = PayloadFormat.JSON
        self._way_down: WayDown | None = None
        self._asides: Asides | None = None

    @property
    def is_introduced(self) -> bool:
        """Whether it has said who it is."""
        return self._session.is_introduced

    @property
    def largest_packet(self) -> int:
        """The largest packet taken, in bytes."""
        return self._endpoint.limits.max_packet_size

    def meet(self, address: str) -> bool:
        """Count as a stranger from that address; False if there is no room for one more.

        Without TLS the connection does so by itself.
        """
        self._origin = origin_of(address)
        return self._endpoint.admission.admit(self, self._origin)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports keep asyncio's promise without deriving from its class.
        self._transport = transport = cast(asyncio.Transport, transport)
        if not self._origin and not self.meet(transport.get_extra_info("peername")[0]):
            transport.abort()
        elif self._session.is_closed:
            transport.abort()  # its TLS handshake took too long
        self._session.has_certificate = certificate_of(transport) is not None

    def data_received(self, data: bytes) -> None:
        at = self._endpoint.clock.now()
        self._carry_out(self._session.receive(data, at, self._loop.time()))
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
        """Look at the deadline, and at what the device may send."""
        if self._session.is_slowed and self._inlet is not None:
            self._endpoint.reception.quotas.slowed(self._inlet.source)
        self._carry_out(self._session.tick(at, now))
        if not self._is_reading:
            self.settle_reading()

    def end(self, reason: str, code: ReasonCode = ReasonCode.ADMINISTRATIVE_ACTION) -> None:
        """Close the connection from our side."""
        self._carry_out(self._session.close(reason, self._endpoint.clock.now(), code))

    def gateway_changed(self) -> None:
        """Ask anew for whom the device may speak."""
        if self._asides is not None:
            self._asides.look_again()

    # --- to who speaks for others

    @property
    def topics(self) -> Topics:
        """The device's topics."""
        return self._session.topics

    def tell(self, topic: bytes, payload: bytes) -> None:
        """Tell the device something with QoS 0, if it listens."""
        self._write(self._session.publish(topic, payload))

    async def transmit(self, outgoing: Outgoing, topic: bytes, payload: bytes) -> Delivered:
        """Send a command on a topic that is not the device's own; as `WayDown.send`."""
        return await self._to_device().transmit(outgoing, payload, topic)

    def settle_reading(self) -> None:
        """Read from the socket if, and only if, more is welcome."""
        is_waiting = (self._inlet is not None and self._inlet.is_waiting) or (
            self._asides is not None and self._asides.is_waiting
        )
        if is_waiting or self._endpoint.reception.intake.is_full:
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
            else:
                self._carry_out_rarer(action)

    def _carry_out_rarer(self, action: Action) -> None:
        match action:
            case Authenticate():
                self._endpoint.reception.spawn(self._authenticate(action))
            case CommandAcknowledged(packet_id, code):
                if self._way_down is not None:
                    self._way_down.answered(packet_id, code)
            case Room():
                if self._way_down is not None:
                    self._way_down.has_room()
            case SaidAside():
                self._take_aside(action)
            case Subscribed():
                self._open_way_down()
            case Unsubscribed():
                self._close_way_down()
            case Keep(answer):
                self._keep(answer)
            case Close():
                self._close(action)

    def _take(self, message: Deliver) -> None:
        inlet = self._inlet
        if inlet is None:
            return
        if message.delay_s is not None:
            self._leave_will(message, message.delay_s, inlet)
            return
        done = partial(self._durable, message.packet_id) if message.qos else nothing
        if message.channel is not Channel.TELEMETRY:
            self._endpoint.reception.met(inlet.source, Protocol.MQTT)
            inlet.take(message.channel, message.payload, message.received_at, done)
        else:
            read = self._reader(inlet.source, message.properties, message.payload)
            inlet.take(message.channel, message.payload, message.received_at, done, read)

    def _leave_will(self, message: Deliver, delay_s: int, inlet: Inlet) -> None:
        _, read = read_by(
            inlet.source, message.properties, message.payload, self._session.topics.written
        )
        will = PendingWill(message, inlet, self._loop.time() + delay_s, read)
        if delay_s:
            self._endpoint.wills.postpone(inlet.source.device_id, will)
        else:
            self._endpoint.wills.take(will)

    def _reader(self, source: Source, properties: Properties | None, payload: bytes) -> Read:
        own = self._session.topics.written
        if properties is None:
            written = own or form_of(source, payload)
            self._endpoint.reception.met(source, Protocol.MQTT, written)
            return reader_of(written)
        if properties is not self._properties or properties.content_type is None:
            self._written, self._read = read_by(source, properties, payload, own)
            self._properties = properties
        self._endpoint.reception.met(source, Protocol.MQTT, self._written)
        return self._read

    def _take_aside(self, said: SaidAside) -> None:
        inlet = self._inlet
        if inlet is None:
            return
        if self._asides is None:
            self._asides = Asides(self._endpoint.desk, inlet, self, SPEAKERS)
        self._endpoint.reception.met(inlet.source, Protocol.MQTT)
        self._asides.take(said, partial(self._durable, said.packet_id) if said.qos else nothing)

    def _to_device(self) -> WayDown:
        if self._way_down is None:
            self._way_down = WayDown(self._session, self._endpoint.clock, self._write)
        return self._way_down

    def _open_way_down(self) -> None:
        if self._inlet is not None:
            self._endpoint.reception.downlinks.attach(self._inlet.source, self._to_device().send)

    def _close_way_down(self) -> None:
        if self._way_down is not None and self._inlet is not None:
            self._endpoint.reception.downlinks.detach(self._inlet.source, self._way_down.send)

    def _keep(self, answer: bytes) -> None:
        """Write the session down, once for all of the same moment, and answer when that is safe."""
        if not self._unkept:
            self._loop.call_soon(self._save)
        self._unkept.append(answer)

    def _save(self) -> None:
        answers, self._unkept = self._unkept, []
        if self._inlet is None or self._session.is_closed:
            return
        kept = self._endpoint.keeper.save(
            self._inlet.source, self._session.kept, self._session.expiry_s, is_over=False
        )
        kept.add_done_callback(partial(self._answer, b"".join(answers)))

    def _answer(self, answers: bytes, kept: "asyncio.Future[None]") -> None:
        if not kept.cancelled():
            self._write(answers)

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

    async def _authenticate(self, asked: Authenticate) -> None:
        named = str(asked.device_id or "")
        try:
            source = await self._source_of(asked)
            if not self._session.is_closed:
                await self._welcome(source, asked)
        except Unauthenticated as error:
            log.info("mqtt login refused", device=named, reason=error.detail)
            self._carry_out(self._session.refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD))
        except AppError as error:
            log.warning("mqtt login not possible", device=named, reason=error.detail)
            self._carry_out(self._session.refused(ReasonCode.SERVER_UNAVAILABLE))
        except Exception:
            # Ours to find. Without an answer the device would wait, and then be told of a timeout.
            log.exception("mqtt login failed", device=named)
            self._carry_out(self._session.refused(ReasonCode.SERVER_UNAVAILABLE))

    async def _source_of(self, asked: Authenticate) -> Source:
        """Return the device that has proven itself. Raises as `Reception.login`."""
        reception = self._endpoint.reception
        if asked.by_certificate:
            assert self._transport is not None
            shown = certificate_of(self._transport)
            assert shown is not None
            return await reception.sources.login_by(
                CredentialKind.CERTIFICATE, fingerprint_of(shown), asked.device_id
            )
        source = await reception.login(asked.password.decode("ascii", "replace"), self._origin)
        if asked.device_id not in (None, source.device_id):
            raise Unauthenticated("the token is another device's")
        return source

    async def _welcome(self, source: Source, asked: Authenticate) -> None:
        """Put the connection in the place of the device's older one, and let it begin.

        Raises Unavailable if its session cannot be looked up now.
        """
        endpoint, device_id = self._endpoint, source.device_id
        self._session.device_id = device_id
        if endpoint.by_device.get(device_id) is not self:
            endpoint.give_up(device_id)
        self._inlet = Inlet(endpoint.reception, source, self.settle_reading, endpoint.wills.let_go)
        endpoint.admission.acquaint(self)
        endpoint.by_device[device_id] = self
        endpoint.reception.met(source, Protocol.MQTT, self._session.topics.written)
        # Said before the session is looked for: that is what makes another process give it up.
        endpoint.reception.presence.came(source, self, "connected by MQTT")
        kept = None
        self._is_kept = asked.resumes or self._session.is_persistent
        if self._is_kept:
            kept = await endpoint.keeper.take(
                source,
                self._session.expiry_s,
                resumes=asked.resumes,
                is_wanted=lambda: not self._session.is_closed,
            )
            if self._session.is_closed:
                if kept is not None and device_id not in endpoint.by_device:
                    endpoint.keeper.save(source, kept, self._session.expiry_s, is_over=True)
                return
        else:
            endpoint.keeper.forget(source)
        endpoint.wills.drop(device_id)
        self._is_accepted = True
        self._carry_out(
            self._session.accepted(
                self._loop.time(),
                receipts=endpoint.receipts.pop(device_id, None),
                kept=kept,
                quota=endpoint.reception.quotas.of(source),
            )
        )
        self.settle_reading()

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
        endpoint.admission.release(self)
        if self._inlet is None:
            return
        self._close_way_down()
        if self._way_down is not None:
            self._way_down.close()
        self._inlet.close()
        if self._asides is not None:
            self._asides.close(reason)
        source = self._inlet.source
        endpoint.reception.quotas.keep(source)
        was_accepted, self._is_accepted = self._is_accepted, False
        if was_accepted:
            if self._session.is_persistent:
                kept, expiry_s = self._session.kept, self._session.expiry_s
                endpoint.keeper.save(source, kept, expiry_s, is_over=True)
            elif self._is_kept:
                endpoint.keeper.forget(source)
        if endpoint.by_device.get(source.device_id) is self:
            del endpoint.by_device[source.device_id]
            if was_accepted:
                # Who was not accepted has none, and those of the connection before are still there.
                endpoint.keep_receipts(source.device_id, self._session.receipts)
        endpoint.reception.presence.went(source, self, reason)

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
