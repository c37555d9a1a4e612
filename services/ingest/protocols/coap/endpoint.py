"""The CoAP endpoint: the socket, telemetry's fast way, and what comes before aiocoap.

A device posts its telemetry in one datagram, ten thousand of them a second: that way is short and is
here. What its options say is looked at once, and known by their bytes from then on. 2.04 leaves when the
message is durable, never before. Everything else (Observe, blocks, OSCORE, discovery) is aiocoap's work;
what comes for the second time is recognised here for both.
"""

import asyncio
import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import cast
from uuid import UUID

import structlog
from aiocoap import Message
from aiocoap.numbers import Code

from libs.common.addresses import origin_of
from libs.common.errors import AppError, TooLarge, Unauthenticated, Unavailable
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.payload import EPOCH, Decoded, as_us
from services.ingest.domain.policy import DevicePolicy
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.quota import Quota, Rate
from services.ingest.protocols.coap.datagram import (
    ACK,
    CHANGED,
    CON,
    HEADER,
    LONGEST_TOKEN,
    MARKER,
    POST,
    SUPPRESS_SUCCESS,
    acknowledgement,
    bounded,
    head_of,
    read_path,
    refusal,
    reset,
    tail_of,
    unconfirmed,
    unknown_critical_options,
)
from services.ingest.protocols.coap.duplicates import (
    MOST_ANSWER_BYTES,
    Address,
    Duplicates,
    Peer,
    key_of,
)
from services.ingest.protocols.coap.engine import Engine, Remote, is_acknowledgement, is_made_once
from services.ingest.protocols.coap.guests import Guest, Route, changed
from services.ingest.protocols.coap.journal import Journal, Sent, recent, sent
from services.ingest.protocols.coap.limits import CoapLimits
from services.ingest.protocols.coap.reading import reader_for
from services.ingest.protocols.coap.secured import Challenge, Secured, Unopened, whom_to_charge
from services.ingest.protocols.coap.site import Site, stranger
from services.ingest.protocols.native import already
from services.ingest.usecases.inlet import Inlet
from services.ingest.usecases.policies import Policies
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

RECEIVE_BUFFER = 4 * 1024 * 1024
MOST_STRANGERS = 10_000
MOST_IN_HAND = 64
"""Messages of one device that may wait for the database; then it is asked to come again."""
MOST_IN_HAND_BYTES = 256 * 1024
MOST_UNDER_WAY = 2_000
"""Requests that are being looked at, those on the fast way apart."""
MOST_LOOKED_UP = 500
"""With more than this under way nobody is looked up who is not known yet."""
MOST_ROUTES = 16
LONGEST_OPTIONS = 512
"""Bytes of the options that telemetry is known by; what has more comes the other way."""
UNDER_WAY_S = 60.0
IDLE_S = 600.0
"""A device that was silent for so long is looked up again."""
SWEEP_S = 30.0
JOURNAL_GONE_S = 300.0
NOT_SAFE_YET = tail_of(refusal(Unavailable("not safe yet; send again", retry_after_s=2)))
TOO_BUSY = refusal(Unavailable("too much is under way; send again", retry_after_s=2))
BUSY = tail_of(TOO_BUSY)
FAILED = Message(code=Code.INTERNAL_SERVER_ERROR)
PLAIN_REFUSED = (
    "plain CoAP is not allowed by the tenant: use OSCORE or DTLS, or set plain_coap in the device"
    " policy"
)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message that was taken, whose answer waits until it is durable."""

    route: Route
    head: bytes
    address: Address
    size: int
    """Of its payload, in bytes."""
    deadline: float
    taken: Decoded
    """As it was read; then as the inlet took it."""

    def note(self, taken: Decoded) -> None:
        """Note what became of it."""
        self.taken = taken


class _Proved(Remote):
    """A device that proved itself, and where it is, before it said anything."""

    is_proved = True


class Endpoint(asyncio.DatagramProtocol):
    """Listens at a UDP port. One an event loop."""

    def __init__(
        self,
        reception: Reception,
        policies: Policies,
        secured: Secured,
        limits: CoapLimits,
        journal: Journal | None = None,
    ) -> None:
        self.reception = reception
        self.limits = limits
        self.guests: dict[UUID, Guest] = {}
        self.site = Site(self, secured)
        self._policies = policies
        self._secured = secured
        self._clock = reception.clock
        self._journal = journal
        self._first_received: dict[Sent, int] = {}
        """What a process before this one received and may get again."""
        self._transport: asyncio.DatagramTransport | None = None
        self._engine = Engine(self.site, self.send, self._answered, self._over)
        self._routes: dict[bytes, Route] = {}
        """By the bytes of their options."""
        self._waiting: dict[int, _Waiting] = {}
        """By the message's number, in the order they came."""
        self._under_way: dict[int, float] = {}
        """Requests being looked at, with when they came."""
        self._strangers: OrderedDict[str, Quota] = OrderedDict()
        self._mid = 0
        self.ignored = 0
        """Requests that got no answer: of somebody who has proved nothing, and asks too often."""
        self.failed = 0
        """Datagrams that a fault of ours kept from being looked at."""
        self._told_of = (0, 0)
        self.send_secured: Callable[[bytes, Peer], None] = _lose
        """How a datagram gets to a device that came through DTLS."""
        reception.sources.on_revoked.append(self._cut)
        reception.on_tick.append(self._tick)
        policies.on_changed.append(self._policy_changed)

    # --- life

    async def listen(self, host: str, port: int) -> int:
        """Open the port and return its number (for port 0, one that is free)."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._duplicates = Duplicates(self.limits.remembered, MOST_ANSWER_BYTES, loop.time())
        self._began = self._swept_at = loop.time()
        if self._journal is not None:
            self._first_received = recent(self._journal, as_us(self._clock.now()))
        await self._engine.start()
        number = await open_port(host, port, self)
        log.info("coap listens", host=host, port=number)
        return number

    async def stop(self) -> None:
        """Answer no more. What was taken and is not durable was not acknowledged."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        await self._engine.stop()
        for guest in self.guests.values():
            guest.inlet.close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    # --- asyncio.DatagramProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports keep asyncio's promise without deriving from its class.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        try:
            self._look_at(data, addr)
        except Exception:
            # Ours to find; told once a second, so that nobody fills the log with it.
            if self.failed == self._told_of[1]:
                log.exception("a coap datagram could not be looked at")
            self.failed += 1

    def receive_secured(self, data: bytes, peer: Peer, source: Source) -> None:
        """Take a datagram of a device that proved itself by DTLS. Raises only what is a fault of ours."""
        self._receive(data, peer, source)

    def _look_at(self, data: bytes, addr: Address) -> None:
        first = data[0] if data else 0
        start = HEADER + (first & 0x0F)
        # A CON or NON of version 1 that is a POST with a payload.
        if first & 0xE0 == 0x40 and len(data) > start and data[1] == POST:
            end = data.find(MARKER, start)
            # The bytes up to the first 0xFF are known only if that is where the options end.
            route = self._routes.get(data[start:end]) if end > 0 else None
            if route is not None:
                self._take(route, data, data[:start], data[end + 1 :], addr)
                return
        self._receive(data, addr)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            log.error("coap: the socket is lost; nobody is heard until a restart", error=str(exc))

    def error_received(self, exc: Exception) -> None:
        # A device that is gone: its host says so by ICMP. Nothing tells which one.
        log.debug("coap: a datagram could not be delivered", error=str(exc))

    # --- telemetry, the fast way

    def _take(
        self, route: Route, data: bytes, head: bytes, payload: bytes, address: Address
    ) -> None:
        duplicates = self._duplicates
        key = key_of(address, data)
        answer = duplicates.answer(key)
        if answer is not None:
            if not data[0] & 0x10:
                self.send(acknowledgement(head, answer), address)
            return
        if key in self._waiting:
            return  # answered when the first one is
        guest = route.guest
        reception = self.reception
        if reception.intake.is_full or (
            guest.inlet.is_waiting
            and (guest.in_hand >= MOST_IN_HAND or guest.in_hand_bytes >= MOST_IN_HAND_BYTES)
        ):
            self._answer(head, address, BUSY)
            return
        received_at = self._clock.now()
        if self._first_received:
            received_at = self._first_receipt(address, data) or received_at
        try:
            reception.quotas.check(guest.source)
            if len(payload) > self.limits.message_bytes:
                raise self.too_large()
            written, read = reader_for(guest.source, route.content_format, payload)
            decoded = read(payload, received_at, reception.window)
            reception.quotas.spend(guest.source, len(decoded.points))
        except AppError as error:
            self._refuse(head, address, error)
            return
        now = self._loop.time()
        waiting = self._waiting[key] = _Waiting(
            route, head, address, len(payload), now + self.limits.answer_within_s, decoded
        )
        guest.in_hand += 1
        guest.in_hand_bytes += len(payload)
        guest.heard_at = now
        if self._journal is not None:
            self._journal.note(address, data, decoded.received_at)
        reception.met(guest.source, Protocol.COAP, written)
        guest.inlet.take(
            Channel.TELEMETRY,
            payload,
            received_at,
            partial(self._durable, key, waiting),
            already(decoded),
            waiting.note,
        )

    def _durable(self, key: int, waiting: _Waiting) -> None:
        """A message is safe: say so, unless the device was told to send it again."""
        route, head, taken = waiting.route, waiting.head, waiting.taken
        guest = route.guest
        guest.in_hand -= 1
        guest.in_hand_bytes -= waiting.size
        guest.note_latest(taken.points)
        if self._waiting.pop(key, None) is None:
            return
        tail = tail_of(changed(taken.refused)) if taken.refused else CHANGED
        if route.wants_no_answer:
            tail = b""
        self._duplicates.remember(key, tail, is_shared=tail is CHANGED or not tail)
        if tail or not head[0] & 0x10:
            self._answer(head, waiting.address, tail)

    def _first_receipt(self, address: Address, data: bytes) -> datetime | None:
        us = self._first_received.get(sent(address, data))
        return None if us is None else EPOCH + timedelta(microseconds=us)

    # --- all else

    def _receive(self, data: bytes, address: Address, source: Source | None = None) -> None:
        """Look at a datagram that is not known by its options; of `source`, if that is proved."""
        message = self._decode(data, address)
        if message is None:
            return
        if not message.code.is_request() or is_acknowledgement(message):
            if message.code is Code.EMPTY and len(data) > HEADER:
                return  # RFC 7252, 4.2: a format error, and not to be answered
            self._engine.dispatch(message)
            return
        key = key_of(address, data)
        answer = self._duplicates.answer(key)
        if answer is not None:
            if message.mtype == CON:
                self.send(acknowledgement(head_of(data), answer), address)
            return
        if key in self._under_way:
            return
        if source is not None and message.opt.oscore is None:
            self._take_proved(message, source, data, key)
            return
        named = read_path(message.opt.uri_path, message.opt.uri_query)
        token = None if named is None else named.token
        if message.opt.oscore is None and token is None:
            self._answer_stranger(data, address, lambda: stranger(message))
            return
        # Those who must be looked up, and may be anybody, leave room for those who are known.
        most = MOST_UNDER_WAY if self._is_known(message, token) else MOST_LOOKED_UP
        if len(self._under_way) >= most:
            self._answer_stranger(data, address, lambda: TOO_BUSY)
            return
        self._under_way[key] = self._loop.time()
        message.key = key
        self.reception.spawn(self._let_in(message, token, data, address))

    def _take_proved(self, message: Message, source: Source, data: bytes, key: int) -> None:
        """Have a request answered whose sender is known. A token that it names says nothing more."""
        address = message.remote.address
        try:
            guest = self.secured_guest(source)
        except AppError as error:
            self._refuse(head_of(data), address, error)
            return
        if len(self._under_way) >= MOST_UNDER_WAY:
            self._answer(head_of(data), address, BUSY)
            return
        self._under_way[key] = self._loop.time()
        message.key = key
        message.remote = _Proved(address, len(data))
        message.remote.guest = guest
        self._engine.dispatch(message)

    def _is_known(self, message: Message, token: str | None) -> bool:
        if message.opt.oscore is not None:
            return self._secured.knows(message)
        return token is not None and self.reception.sources.is_known(token)

    def _answer_stranger(
        self, data: bytes, address: Address, answer: Callable[[], Message]
    ) -> None:
        """Answer somebody who has proved nothing, neither who nor where he is: seldom, and in short."""
        if self.may_stranger(address):
            head = head_of(data)
            self._answer(head, address, bounded(tail_of(answer()), data))

    def _decode(self, data: bytes, address: Address) -> Message | None:
        try:
            if len(data) < HEADER or data[0] & 0x0F > LONGEST_TOKEN:
                raise ValueError("no CoAP")
            message = Message.decode(data, Remote(address, len(data)))
            # What is only read when it is looked at must be readable too.
            message.opt.uri_path  # noqa: B018 - the options' decoder may raise
        except Exception:  # noqa: BLE001 - aiocoap's decoder raises whatever its bytes lead it to
            # RFC 7252, 4.2: what cannot be read is rejected, if it asks for an answer.
            if len(data) >= HEADER and data[0] & 0xF0 == 0x40 and self.may_stranger(address):
                self.send(reset(data), address)
            return None
        return message

    async def _let_in(
        self, message: Message, token: str | None, data: bytes, address: Address
    ) -> None:
        """Find out who asks, and have it answered. aiocoap keeps nothing for who is nobody."""
        is_handed_over = False
        try:
            if message.opt.oscore is not None:
                await self._secured.look_up(message)
                opened = self._secured.open(message, self.secured_guest)
                if isinstance(opened, Challenge):
                    if message.mtype == CON:
                        self._answer(head_of(data), address, tail_of(opened.answer))
                    return
                message.opened = opened
            else:
                guest = await self.guest_by_token(token or "", address)
                if self._is_telemetry(message):
                    self._introduce(message, guest, data, address)
                    return
                message.remote.guest = guest
            is_handed_over = True
            self._engine.dispatch(message)
        except AppError as error:
            told = refusal(error)
            self._answer_stranger(data, address, lambda: told)
        except Unopened as unopened:
            if message.mtype == CON:
                told = unopened.answer
                self._answer_stranger(data, address, lambda: told)
        except Exception:
            # Ours to find. Nobody awaits this task, and the device is not left without an answer.
            log.exception("a coap request could not be looked at")
            self._answer_stranger(data, address, lambda: FAILED)
        finally:
            if not is_handed_over:
                self._under_way.pop(message.key, None)

    @staticmethod
    def _is_telemetry(message: Message) -> bool:
        """Whether all of it is in this datagram, and its like may come the fast way from now on."""
        options = message.opt
        named = read_path(options.uri_path, options.uri_query)
        return (
            named is not None
            and named.path == ("telemetry",)
            and message.code is Code.POST
            and options.block1 is None
            and bool(message.payload)
            and not unknown_critical_options(message)
        )

    def _introduce(self, message: Message, guest: Guest, data: bytes, address: Address) -> None:
        """Learn what datagrams with these options are, and take the first."""
        head = head_of(data)
        number, no_response = message.opt.content_format, message.opt.no_response or 0
        route = Route(
            guest, None if number is None else int(number), bool(no_response & SUPPRESS_SUCCESS)
        )
        try:
            _, read = reader_for(guest.source, route.content_format, message.payload)
            self.reception.quotas.check(guest.source)
            # If it cannot be read, it may not be what it looks like: nothing is learnt from it.
            read(message.payload, self._clock.now(), self.reception.window)
        except AppError as error:
            self._refuse(head, address, error)
            return
        options = data[len(head) : len(data) - len(message.payload) - 1]
        if MARKER not in options and len(options) <= LONGEST_OPTIONS:
            self._learn(options, route)
        self._take(route, data, head, message.payload, address)

    def _learn(self, options: bytes, route: Route) -> None:
        own = route.guest.routes
        if len(own) >= MOST_ROUTES:
            self._unlearn(route.guest, next(iter(own)))
        elif len(self._routes) >= self.limits.devices:
            oldest = next(iter(self._routes))
            self._unlearn(self._routes[oldest].guest, oldest)
        self._routes[options] = route
        own[options] = None

    def _unlearn(self, guest: Guest, options: bytes) -> None:
        del guest.routes[options]
        del self._routes[options]

    def _answered(self, request: Message, answer: Message) -> None:
        """Keep the answer to a request that must not be done again when it comes again."""
        if self._under_way.pop(request.key, None) is None:
            return
        is_done = request.code is not Code.GET and answer.code.is_successful()
        if not (is_done or is_made_once(answer)):
            return  # done again it does no harm
        tail = tail_of(answer) if answer.mtype == ACK else b""
        self._duplicates.remember(request.key, tail)

    def _over(self, request: Message) -> None:
        """Nothing more is done about a request, answered or not."""
        self._under_way.pop(request.key, None)

    # --- who it is

    async def guest_by_token(self, token: str, address: Address) -> Guest:
        """Return the device whose token it is.

        Raises as `Reception.login`, and Unauthenticated if its tenant does not allow plain CoAP.
        """
        source = await self.reception.login(token, whom_to_charge(address))
        if not (await self._policies.of(source.tenant_id)).plain_coap:
            raise Unauthenticated(PLAIN_REFUSED)
        return self.guest(source, is_plain=True)

    def secured_guest(self, source: Source) -> Guest:
        """Return a device that proved itself by OSCORE or DTLS. Raises Unauthenticated if it may not go on."""
        return self.guest(source, is_plain=False)

    def guest(self, source: Source, *, is_plain: bool) -> Guest:
        """Return what is known of a device here. Raises Unauthenticated if it may not go on."""
        if source.is_revoked:
            raise Unauthenticated("the device may not go on")
        guest = self.guests.get(source.device_id)
        if guest is None or guest.source is not source:
            if guest is not None:
                self._forget(guest)
            guest = Guest(source, Inlet(self.reception, source), is_plain, self._loop.time())
            self.guests[source.device_id] = guest
        guest.heard_at = self._loop.time()
        guest.is_plain = guest.is_plain or is_plain
        return guest

    def met(self, guest: Guest, written: PayloadFormat | None = None) -> None:
        """Note that a device spoke."""
        self.reception.met(guest.source, Protocol.COAP, written)

    def too_large(self) -> TooLarge:
        """Return what is said of a message that is too large."""
        return TooLarge(f"a message has at most {self.limits.message_bytes} bytes")

    def may_stranger(self, address: Address) -> bool:
        """Whether one more request without a credential is answered to an address."""
        with contextlib.suppress(ValueError):
            origin = origin_of(address[0].partition("%")[0])
            most, now = self.limits.strangers_per_minute, self._loop.time()
            quota = self._strangers.pop(origin, None) or Quota(Rate(most / 60, most), now)
            self._strangers[origin] = quota
            if len(self._strangers) > MOST_STRANGERS:
                self._strangers.popitem(last=False)
            quota.refill(now)
            if quota.remaining:
                quota.spend(1, now)
                return True
        self.ignored += 1
        return False

    # --- out

    def send(self, data: bytes, address: Address) -> None:
        """Send a datagram, as far as anybody can."""
        if isinstance(address, Peer):
            self.send_secured(data, address)
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, address)

    def _answer(self, head: bytes, address: Address, tail: bytes) -> None:
        if head[0] & 0x10:
            self._mid = (self._mid + 1) & 0xFFFF
            self.send(unconfirmed(head, tail, self._mid), address)
        else:
            self.send(acknowledgement(head, tail), address)

    def _refuse(self, head: bytes, address: Address, error: AppError) -> None:
        answer = refusal(error)
        if isinstance(error, TooLarge):
            answer.opt.size1 = self.limits.message_bytes
        self._answer(head, address, tail_of(answer))

    # --- what ends

    def _cut(self, device_id: UUID, reason: str) -> None:
        guest = self.guests.get(device_id)
        if guest is not None:
            guest.inlet.close()
            self._forget(guest)
        self.site.cut(device_id, reason)

    def _forget(self, guest: Guest) -> None:
        for options in list(guest.routes):
            self._unlearn(guest, options)
        del self.guests[guest.source.device_id]

    def _policy_changed(self, tenant_id: UUID, policy: DevicePolicy) -> None:
        if policy.plain_coap:
            return
        for guest in list(self.guests.values()):
            if guest.source.tenant_id == tenant_id and guest.is_plain:
                self._cut(guest.source.device_id, PLAIN_REFUSED)

    async def _check_policies(self) -> None:
        """Look at the policies by which devices are here: an event may have been missed."""
        tenants = {guest.source.tenant_id for guest in self.guests.values() if guest.is_plain}
        for tenant_id in tenants:
            try:
                self._policy_changed(tenant_id, await self._policies.of(tenant_id))
            except AppError:
                return  # looked at again with the next sweep

    def _tick(self) -> None:
        if self._transport is None:
            return
        now = self._loop.time()
        self._duplicates.tick(now)
        late = []
        for key, waiting in self._waiting.items():
            if waiting.deadline > now:
                break
            late.append(key)
        for key in late:
            waiting = self._waiting.pop(key)
            # It may be stored all the same: one that comes again must get the same answer.
            self._duplicates.remember(key, NOT_SAFE_YET, is_shared=True)
            self._answer(waiting.head, waiting.address, NOT_SAFE_YET)
        while self._under_way:
            oldest, since = next(iter(self._under_way.items()))
            if now - since < UNDER_WAY_S:
                break
            del self._under_way[oldest]
        if self._first_received and now - self._began > JOURNAL_GONE_S:
            self._first_received = {}
        if now - self._swept_at > SWEEP_S:
            self._swept_at = now
            self._forget_idle(now)
            self.reception.spawn(self._check_policies())
        ignored, failed = self.ignored - self._told_of[0], self.failed - self._told_of[1]
        if ignored or failed:
            log.warning("coap: not answered", strangers=ignored, failed=failed)
            self._told_of = (self.ignored, self.failed)

    def _forget_idle(self, now: float) -> None:
        for guest in list(self.guests.values()):
            if now - guest.heard_at > IDLE_S and not (guest.in_hand or guest.asked):
                self._forget(guest)


async def open_port(host: str, port: int, protocol: asyncio.DatagramProtocol) -> int:
    """Open a UDP port and return its number (for port 0, one that is free)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = found[0]
    own = socket.socket(family, socket.SOCK_DGRAM)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        own.setblocking(False)
        own.bind(address)
        await loop.create_datagram_endpoint(lambda: protocol, sock=own)
    except BaseException:
        own.close()
        raise
    number: int = own.getsockname()[1]
    return number


def _lose(data: bytes, peer: Peer) -> None:
    """Send nothing: nobody listens for DTLS here."""
