"""Devices that publish over AMQP 0-9-1: to RabbitMQ, which asks us who they are and keeps what they say.

`devices`          topic exchange, `<device id>.<channel>`: what devices publish to, with confirms
`devices.ingest`   quorum queue of all of it; full, it refuses, and so the confirms push back
`devices.dead`     quorum queue of what is nobody's: the device was removed, or its name is forged;
                   `iiot dead-letters` puts it back
`commands.<id>`    a device's commands, until it takes them or their time is over

A confirm says that a message is safe in the queue. It is acknowledged to the broker when it is
durable on the bus, never before, so what we had not passed on when we died comes again.

A message at which we die each time must not take those with it that are in our hands beside it. The
broker counts how often each was given back, and it counts all that were in our hands. So what came
back more than once is taken one by one, until new messages come: then only the guilty one's count
grows, and it goes to the quarantine unread.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol as Interface
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp.commands import Basic

from libs.common.bus.outcome import is_transient
from libs.common.bus.rabbit_envelope import PERSISTENT
from libs.common.bus.rabbit_link import BROKEN, Link, closing_is_an_error, pause_s
from libs.common.bus.rabbit_publisher import Parcel, Publisher
from libs.common.errors import NotFound, TooLarge, TooManyRequests, Unavailable, UnsupportedMedia
from libs.common.tasks import end
from services.ingest.adapters.rabbit_management import Management
from services.ingest.domain.broker_access import EXCHANGE, command_queue, read_routing_key
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing, to_json
from services.ingest.domain.device import Source
from services.ingest.domain.formats import format_of, recognise
from services.ingest.domain.payload import Read, decode
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.quota import messages_by_size
from services.ingest.protocols.amqp_deliveries import Delivery, DeliveryTransport
from services.ingest.usecases.downlinks import Send
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.quotas import OverQuota
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

T = TypeVar("T")

INGEST_QUEUE = "devices.ingest"
DEAD = "devices.dead"
PREFETCH = 2_000
"""Messages in our hands at once. A batch for the bus takes tens of milliseconds."""
MOST_IN_HAND = 128 * 1024 * 1024
"""Bytes in our hands at once: where large messages are taken, there are fewer."""
LOOKED_UP_AT_ONCE = 32
MOST_KNOWN = 100_000
"""Devices remembered."""
TAKEN_AT_A_TURN = 100
"""Messages taken before others have their turn of the loop."""
SUSPECT = 2
"""A message that was given back so often is taken alone."""
UNREAD = 10
"""A message that was given back so often goes to the quarantine unread."""
DELIVERY_LIMIT = 100
"""If even that ends us, the broker makes it a dead letter. Only what is taken alone gets so far."""
LOOKED_AT = 1_000_000
"""How often a dead letter may be looked at; RabbitMQ 4 would throw it away after 20 times."""
COMMANDS_KEPT_MS = 7 * 24 * 3_600_000
"""How long a queue of commands stays that nobody reads."""
MOST_COMMANDS = 1_000
MOST_CONNECTIONS = 16
"""Of one device: the broker itself limits only users of its own."""
LOGINS_UNSEEN = 8
"""A device may log in so often before it is looked how many connections it has."""
OWED_S = 10.0
"""A device that owes what it may send in so long is cut off, and let in again when that is paid."""
SHUT_S = 30.0
"""A queue of commands that takes none, as it has gone or is full, is let alone for so long."""
DECLARED_S = 24 * 3_600.0
"""A queue that was made within so long is not made again: many may log in at once."""
CLOSED_AT_ONCE = 8
CUT_FOR_S = 30.0
"""How long a revoked device's connections are tried to be cut: it cannot open others."""


class Tenants(Interface):
    """Knows whose device it is."""

    async def tenant_of(self, device_id: UUID) -> UUID | None:
        """Return the device's tenant, None if there is no such device."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may lie in the broker's queues, and how large a message is taken."""

    queue_bytes: int
    message_bytes: int


@dataclass(slots=True, eq=False)
class _Taken:
    """A message in our hands, in the order in which they came."""

    tag: int
    done: Done | None = None
    is_settled: bool = False
    is_rejected: bool = False


class _Acknowledger:
    """Acknowledges a channel's messages in order, many by one frame."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self._taken: deque[_Taken] = deque()
        self._some = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="ingest.amqp.acknowledge")

    def has_closed(self) -> bool:
        """Whether the channel is gone: the broker delivers again what is not acknowledged."""
        return self.channel.is_closed

    def take(self, tag: int) -> Done:
        """Take a message; what is returned is called when it is durable."""
        taken = _Taken(tag)
        self._taken.append(taken)

        def settle() -> None:
            taken.is_settled = True
            if self._taken and self._taken[0] is taken:
                self._some.set()

        taken.done = settle
        return settle

    async def reject(self, tag: int) -> None:
        """Give a message to the dead letters."""
        await self._refuse(tag, requeue=False)

    async def give_back(self, done: Done) -> None:
        """Give a message back that will not be taken, so that it comes again; by its `done`.

        Were it only left, it would hold up all that came after it, which is acknowledged in order.
        """
        for taken in list(self._taken):
            if taken.done is done and not taken.is_settled:
                with contextlib.suppress(*BROKEN):
                    await self._refuse(taken.tag, requeue=True)

    async def _refuse(self, tag: int, *, requeue: bool) -> None:
        await self.channel.basic_reject(tag, requeue=requeue, wait=False)
        # Only now: an acknowledgement of those behind it would be one of this, too.
        for taken in self._taken:
            if taken.tag == tag:
                taken.is_settled = taken.is_rejected = True
        self._some.set()

    async def stop(self) -> None:
        """Acknowledge no more."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            # What settles in the same turn of the loop leaves by the same frame.
            await asyncio.sleep(0)
            self._some.clear()
            last = None
            while self._taken and self._taken[0].is_settled:
                taken = self._taken.popleft()
                if not taken.is_rejected:
                    last = taken.tag
            if last is not None:
                try:
                    await self.channel.basic_ack(last, multiple=True, wait=False)
                except BROKEN:
                    return  # the broker delivers them again


class AmqpDevices:
    """Takes what devices publish at one broker, and brings them their commands there."""

    def __init__(
        self,
        url: str,
        reception: Reception,
        tenants: Tenants,
        management: Management | None,
        limits: Limits,
    ) -> None:
        self._reception = reception
        self._tenants = tenants
        self._management = management
        self._limits = limits
        self.vhost = unquote(urlsplit(url).path[1:]) or "/"
        transport = DeliveryTransport(self._on_delivery, limits.message_bytes)
        self._link = Link(url, "ingest-devices", self._declare, transport=transport)
        self._publisher = Publisher(self._link, timeout_s=10.0, max_in_flight=256)
        self._waiting: deque[tuple[_Acknowledger, Delivery]] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._acknowledger: _Acknowledger | None = None
        self._careful: str | None = None
        """The consumer that takes one message at a time, while it is at work."""
        self._inlets: OrderedDict[UUID, Inlet] = OrderedDict()
        self._ways: OrderedDict[UUID, tuple[Source, Send]] = OrderedDict()
        """Devices whose queue of commands there is, as far as this process knows."""
        self._declared: OrderedDict[UUID, float] = OrderedDict()
        """When a device's queue of commands was made, or was there when it was to be made."""
        self._shut: OrderedDict[UUID, float] = OrderedDict()
        """Devices whose queue took no command, and until when it is offered none."""
        self._logins: OrderedDict[UUID, int] = OrderedDict()
        """How often a device logged in since its connections were counted."""
        self._owing: dict[UUID, float] = {}
        """Devices cut for sending more than they may, and when they are cut again if they go on."""
        self._to_cut: OrderedDict[UUID, str] = OrderedDict()
        self._cutting = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_up(self) -> bool:
        """Whether messages come."""
        return self._acknowledger is not None and not self._acknowledger.has_closed()

    def start(self) -> None:
        """Connect as soon as the broker is there, and stay connected from then on."""
        self._reception.intake.on_room.append(self._room.set)
        self._reception.sources.on_revoked.append(self._revoke)
        self._link.start()
        self._tasks = [
            asyncio.create_task(work, name=f"ingest.amqp.{name}")
            for name, work in (
                ("publish", self._publisher.keep_open()),
                ("consume", self._link.keep_channel(self._consume)),
                ("work", self._work()),
                ("cut", self._cut_forever()),
                ("find", self._find_ways()),
            )
        ]

    async def stop(self) -> None:
        """Take no more; what is not acknowledged the broker gives to the next."""
        self._reception.intake.on_room.remove(self._room.set)
        self._reception.sources.on_revoked.remove(self._revoke)
        for task in self._tasks:
            await end(task)
        if self._acknowledger is not None:
            await self._acknowledger.stop()
        for inlet in self._inlets.values():
            inlet.close()
        for source, send in self._ways.values():
            self._reception.downlinks.detach(source, send)
        self._ways.clear()
        await self._link.stop()
        if self._management is not None:
            await self._management.close()

    async def welcome(self, source: Source) -> None:
        """Make the queue of commands of a device that logs in.

        Raises Unavailable, and TooManyRequests if it has more connections than a device needs.
        """
        device_id = source.device_id
        await self._mind_connections(device_id)
        if not self._was_declared(device_id):
            await self._declare_queue_of(device_id)
        if device_id not in self._ways:
            self._open_way(source)

    def _was_declared(self, device_id: UUID) -> bool:
        at = self._declared.get(device_id)
        return at is not None and asyncio.get_running_loop().time() - at < DECLARED_S

    async def _declare_queue_of(self, device_id: UUID) -> None:
        try:
            with closing_is_an_error():
                async with asyncio.timeout(5.0):
                    connection = await self._link.connection()
                    channel = await connection.channel(publisher_confirms=False)
                    try:
                        await channel.queue_declare(
                            command_queue(device_id),
                            durable=True,
                            arguments={
                                "x-expires": COMMANDS_KEPT_MS,
                                "x-max-length": MOST_COMMANDS,
                                "x-overflow": "reject-publish",
                            },
                        )
                    finally:
                        await channel.close()
        except BROKEN as error:
            raise Unavailable("the broker cannot be reached", retry_after_s=1) from error
        _remember(self._declared, device_id, asyncio.get_running_loop().time())

    async def _mind_connections(self, device_id: UUID) -> None:
        if self._management is None:
            return
        logins = self._logins.pop(device_id, 0) + 1
        if logins > LOGINS_UNSEEN:
            try:
                open_now = await self._management.connections_of(str(device_id))
            except Unavailable:
                open_now = 0  # rather one too many than a device that is shut out
            if open_now >= MOST_CONNECTIONS:
                _remember(self._logins, device_id, LOGINS_UNSEEN)
                detail = f"it has {MOST_CONNECTIONS} connections, which is as many as there may be"
                raise TooManyRequests(detail, retry_after_s=10)
            logins = 1
        _remember(self._logins, device_id, logins)

    # --- what devices say

    async def _declare(self, connection: AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        try:
            await channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
            await channel.exchange_declare(DEAD, exchange_type="fanout", durable=True)
            bounds = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
            most_bytes = self._limits.queue_bytes
            await channel.queue_declare(
                DEAD,
                durable=True,
                arguments={
                    **bounds,
                    "x-max-length-bytes": most_bytes,
                    # Who looks at them gives them back, as often as he likes.
                    "x-delivery-limit": LOOKED_AT,
                    # Full and refusing, it would fill up the queue of all devices, who can let
                    # messages die (`expiration`): rather the oldest of the dead than the living.
                    "x-overflow": "drop-head",
                },
            )
            await channel.queue_bind(DEAD, DEAD)
            await channel.queue_declare(
                INGEST_QUEUE,
                durable=True,
                arguments={
                    **bounds,
                    "x-max-length-bytes": most_bytes,
                    "x-delivery-limit": DELIVERY_LIMIT,
                    # Two who read would mix up the order of a device's messages.
                    "x-single-active-consumer": True,
                    "x-dead-letter-exchange": DEAD,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )
            await channel.queue_bind(INGEST_QUEUE, EXCHANGE, routing_key="#")
        finally:
            await channel.close()

    async def _consume(self, connection: AbstractConnection) -> AbstractChannel:
        if self._acknowledger is not None:
            await self._acknowledger.stop()
        channel = await connection.channel(publisher_confirms=False)
        self._acknowledger = _Acknowledger(channel)

        async def on_cancel(_: object) -> None:
            # The queue was deleted. A new channel finds it declared again, with a new connection.
            self._reception.spawn(_close(connection))

        channel.on_consumer_cancel_callbacks.add(on_cancel)
        # Of the queue's consumers one is at work, and the next when that is over: first the careful one.
        most = max(1, min(PREFETCH, MOST_IN_HAND // self._limits.message_bytes))
        await channel.basic_qos(prefetch_count=1)
        consuming = await channel.basic_consume(INGEST_QUEUE, _taken_already)
        self._careful = consuming.consumer_tag
        await channel.basic_qos(prefetch_count=most)
        await channel.basic_consume(INGEST_QUEUE, _taken_already)
        return channel

    def _on_delivery(self, message: Delivery) -> None:
        acknowledger = self._acknowledger
        if acknowledger is None or acknowledger.channel.number != message.channel:
            return  # of a channel that is gone: it comes again
        if self._careful is not None and message.failures < SUSPECT:
            consumer, self._careful = self._careful, None
            self._reception.spawn(_cancel(acknowledger.channel, consumer))
        self._waiting.append((acknowledger, message))
        self._arrived.set()

    async def _work(self) -> None:
        failures = taken = 0
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            while self._reception.intake.is_full:
                self._room.clear()
                await self._room.wait()
            acknowledger, message = self._waiting[0]
            if acknowledger.has_closed():
                self._waiting.popleft()  # it comes again
                continue
            try:
                if not self._take(acknowledger, message):
                    with closing_is_an_error():
                        await self._take_stranger(acknowledger, message)
                failures = 0
            except Exception as error:
                if acknowledger.has_closed():
                    continue  # it comes again
                if is_transient(error):
                    failures += 1
                    await asyncio.sleep(pause_s(failures))
                    continue
                # Ours to find. It lies among the dead letters, and all else behind it goes on.
                log.exception("a message could not be taken")
                with contextlib.suppress(*BROKEN):
                    await acknowledger.reject(message.tag)
            self._waiting.popleft()
            taken += 1
            if taken % TAKEN_AT_A_TURN == 0:
                await asyncio.sleep(0)

    async def _take_stranger(self, acknowledger: _Acknowledger, message: Delivery) -> None:
        """Take the message of a device that this process does not know, or that is none."""
        try:
            device_id, _ = read_routing_key(message.routing_key)
        except ValueError:
            await self._bury(acknowledger, message, "its routing key is no device's")
            return
        await self._look_up(device_id)
        if not self._take(acknowledger, message):
            await self._bury(acknowledger, message, "there is no such device")

    def _take(self, acknowledger: _Acknowledger, message: Delivery) -> bool:
        """Take a message; False if its device is not known, or there is none."""
        try:
            device_id, channel = read_routing_key(message.routing_key)
        except ValueError:
            return False
        inlet = self._inlets.get(device_id)
        if inlet is None:
            return False
        self._inlets.move_to_end(device_id)
        done = acknowledger.take(message.tag)
        source, received_at = inlet.source, self._reception.clock.now()
        self._count(source, message.size)
        refused = self._refusal(message)
        written: PayloadFormat | None = None
        read: Read = decode
        if refused is None and channel is Channel.TELEMETRY:
            try:
                written, read = _recognise(message, source)
            except UnsupportedMedia as error:
                refused = error.slug, error.detail
        if refused is not None:
            reason, detail = refused
            self._reception.intake.refuse_message(
                source,
                reason,
                detail,
                message.body,
                done,
                received_at=received_at,
                channel=channel,
            )
            return True
        self._reception.met(source, Protocol.AMQP, written)
        if device_id not in self._ways and not self._is_shut(device_id):
            self._open_way(source)
        inlet.take(channel, message.body, received_at, done, read)
        return True

    def _count(self, source: Source, size: int) -> None:
        """Count a message that was confirmed already: all that helps is to have no more of them."""
        quotas, now = self._reception.quotas, asyncio.get_running_loop().time()
        quota = quotas.of(source)
        quota.spend(messages_by_size(size), now)
        if quota.left < -OWED_S * quota.rate.per_second:
            if now < self._owing.get(source.device_id, 0.0):
                return
            if len(self._owing) > MOST_KNOWN:
                self._owing.clear()
            self._owing[source.device_id] = now + CUT_FOR_S
            try:
                quotas.check(source)
            except OverQuota as error:
                self._close_connections_of(source.device_id, error.detail)

    def _refusal(self, message: Delivery) -> tuple[str, str] | None:
        """Return for what reason a message goes to the quarantine unread, in a word and a sentence."""
        if message.user_id != message.routing_key.partition(".")[0]:
            # The broker checks a user_id that is there, and lets pass what has none.
            return "user_id", "the property user_id is the device's id, and is required"
        if message.size > self._limits.message_bytes:
            most = self._limits.message_bytes
            error = TooLarge(f"{message.size} bytes, where at most {most} are taken")
            return error.slug, error.detail
        if message.failures >= UNREAD:
            log.error(
                "a message at which the platform ends is not read",
                failures=message.failures,
                routing_key=message.routing_key,
            )
            return (
                "internal",
                f"the platform failed {message.failures} times when it was to read it",
            )
        return None

    async def _bury(self, acknowledger: _Acknowledger, message: Delivery, why: str) -> None:
        log.warning("a dead letter of a device's", why=why, routing_key=message.routing_key[:200])
        acknowledger.take(message.tag)
        await acknowledger.reject(message.tag)

    async def _look_up(self, device_id: UUID) -> None:
        """Look a device up, and the next strangers that wait behind it, at once."""
        wanted = {device_id: None}
        for _, message in islice(self._waiting, 4 * LOOKED_UP_AT_ONCE):
            with contextlib.suppress(ValueError):
                other, _ = read_routing_key(message.routing_key)
                if other not in self._inlets:
                    wanted[other] = None
            if len(wanted) >= LOOKED_UP_AT_ONCE:
                break
        found = await asyncio.gather(*map(self._source_of, wanted), return_exceptions=True)
        for one, source in zip(wanted, found, strict=True):
            if isinstance(source, BaseException):
                if one == device_id:
                    raise source
            elif source is not None and not source.is_revoked:
                self._inlets[one] = Inlet(self._reception, source, on_let_go=self._give_back)
            elif source is not None and one == device_id:
                # Revoked while we looked, which need not mean removed: its token may be another.
                raise Unavailable("the device has just changed", retry_after_s=1)
        for one in list(islice(self._inlets, max(0, len(self._inlets) - MOST_KNOWN))):
            if not self._inlets[one].is_waiting and one not in wanted:
                del self._inlets[one]

    def _give_back(self, done: Done) -> None:
        """Let a message come again that an inlet has let go, such as of a device just revoked."""
        if self._acknowledger is not None and not self._acknowledger.has_closed():
            self._reception.spawn(self._acknowledger.give_back(done))

    async def _source_of(self, device_id: UUID) -> Source | None:
        try:
            tenant_id = await self._tenants.tenant_of(device_id)
        except Exception as error:
            if is_transient(error):
                raise Unavailable("devices cannot be looked up now", retry_after_s=2) from error
            raise
        if tenant_id is None:
            return None
        try:
            return await self._reception.sources.of_tenant(tenant_id, device_id)
        except NotFound:
            return None

    # --- commands

    def _open_way(self, source: Source) -> None:
        async def send(outgoing: Outgoing) -> Delivered:
            await self._send(source, send, outgoing)
            return Delivered.SENT

        self._shut.pop(source.device_id, None)
        self._ways[source.device_id] = (source, send)
        self._reception.downlinks.attach(source, send)
        while len(self._ways) > MOST_KNOWN:
            _, (longest, way) = self._ways.popitem(last=False)
            self._reception.downlinks.detach(longest, way)

    async def _send(self, source: Source, send: Send, outgoing: Outgoing) -> None:
        left = outgoing.expires_at - self._reception.clock.now()
        properties = Basic.Properties(
            content_type="application/json",
            delivery_mode=PERSISTENT,
            message_id=str(outgoing.id),
            message_type=outgoing.name[:255],
            expiration=str(max(0, int(left.total_seconds() * 1000))),
        )
        queue = command_queue(source.device_id)
        try:
            await self._publisher.publish([Parcel("", queue, properties, to_json(outgoing))])
        except Unavailable:
            if self._publisher.is_open and self._ways.get(source.device_id) == (source, send):
                # Its queue has gone, or is full. Each of its words would try again otherwise.
                now = asyncio.get_running_loop().time()
                _remember(self._shut, source.device_id, now + SHUT_S)
                self._declared.pop(source.device_id, None)
                del self._ways[source.device_id]
                self._reception.downlinks.detach(source, send)
            raise

    def _is_shut(self, device_id: UUID) -> bool:
        return asyncio.get_running_loop().time() < self._shut.get(device_id, 0.0)

    async def _find_ways(self) -> None:
        """Find the queues of commands that outlived the process that made them."""
        if self._management is None:
            return
        prefix, failures = command_queue(UUID(int=0))[:-36], 0
        page = pages = 1
        while page <= pages:
            try:
                await self._link.connection()
                found, pages = await self._management.queues(self.vhost, prefix, page)
                await self._find_ways_to([queue.removeprefix(prefix) for queue in found])
            except Exception as error:
                if is_transient(error):
                    log.warning("queues of commands cannot be listed now", error=str(error))
                else:
                    log.exception("queues of commands could not be listed")
                failures += 1
                await asyncio.sleep(pause_s(failures))
                # There may be fewer pages by now. What was found on this one is known already.
                page = max(1, page - 1)
                continue
            page, failures = page + 1, 0

    async def _find_ways_to(self, named: Iterable[str]) -> None:
        """Open the ways to the devices that have a queue of these names. Raises what is transient."""
        devices = []
        for name in named:
            with contextlib.suppress(ValueError):
                devices.append(UUID(name))
        unknown = [device_id for device_id in devices if device_id not in self._ways]
        for start in range(0, len(unknown), LOOKED_UP_AT_ONCE):
            some = unknown[start : start + LOOKED_UP_AT_ONCE]
            found = await asyncio.gather(*map(self._source_of, some), return_exceptions=True)
            failed: BaseException | None = None
            for device_id, source in zip(some, found, strict=True):
                if isinstance(source, BaseException):
                    if is_transient(source):
                        failed = source
                    else:
                        # Ours to find. It costs this device's way alone, until its next word.
                        log.error("no way was found", device=str(device_id), exc_info=source)
                elif source is not None and device_id not in self._ways and not source.is_revoked:
                    self._open_way(source)
            if failed is not None:
                raise failed

    # --- who may go on no longer

    def _revoke(self, device_id: UUID, reason: str) -> None:
        inlet = self._inlets.pop(device_id, None)
        if inlet is not None:
            inlet.close()
        way = self._ways.pop(device_id, None)
        if way is not None:
            self._reception.downlinks.detach(*way)
        self._shut.pop(device_id, None)
        self._close_connections_of(device_id, reason)

    def _close_connections_of(self, device_id: UUID, reason: str) -> None:
        self._to_cut[device_id] = reason
        self._cutting.set()

    async def _cut_forever(self) -> None:
        while True:
            await self._cutting.wait()
            self._cutting.clear()
            if self._management is None:
                self._to_cut.clear()
                continue
            while self._to_cut:
                some = [
                    self._to_cut.popitem(last=False)
                    for _ in range(min(CLOSED_AT_ONCE, len(self._to_cut)))
                ]
                await asyncio.gather(*(self._cut(device_id, reason) for device_id, reason in some))

    async def _cut(self, device_id: UUID, reason: str) -> None:
        assert self._management is not None
        failures = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_FOR_S):
                while True:
                    try:
                        await self._management.close_connections_of(str(device_id), reason)
                        return
                    except Unavailable as error:
                        log.warning("a connection cannot be cut", error=error.detail)
                    except Exception:
                        # Ours to find. It must not keep all that are revoked later from being cut.
                        log.exception("a connection could not be cut", device=str(device_id))
                    failures += 1
                    await asyncio.sleep(pause_s(failures))
        log.error("a device's connections are not cut", device=str(device_id))


def _recognise(message: Delivery, source: Source) -> tuple[PayloadFormat, Read]:
    """Return the form of a message's body, with its reader. Raises UnsupportedMedia."""
    named = None
    if message.content_type:
        named = format_of(message.content_type)
        if named is None:
            raise UnsupportedMedia(f"content type {message.content_type[:100]!r} is not read here")
    return recognise(message.body, named, source.profile)


def _remember(known: OrderedDict[UUID, T], device_id: UUID, value: T) -> None:
    """Note something of a device; of too many the longest unheard of is forgotten."""
    known[device_id] = value
    known.move_to_end(device_id)
    if len(known) > MOST_KNOWN:
        known.popitem(last=False)


async def _taken_already(_: object) -> None:
    """What the library does with a delivery: none comes so far."""


async def _cancel(channel: AbstractChannel, consumer: str) -> None:
    with contextlib.suppress(*BROKEN), closing_is_an_error():
        await channel.basic_cancel(consumer)


async def _close(connection: AbstractConnection) -> None:
    with contextlib.suppress(*BROKEN), closing_is_an_error():
        async with asyncio.timeout(5):
            await connection.close()
