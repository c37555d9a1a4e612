"""What can be asked of the CoAP endpoint: its resources, behind aiocoap's server.

A request is answered with what it came by: one that was protected by OSCORE gets a protected answer.
What comes here is of a device that was let in; who shows no credential is answered by `stranger`, and
nothing is kept for it.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol
from uuid import UUID

import msgspec
import structlog
from aiocoap import Message
from aiocoap.interfaces import Resource
from aiocoap.numbers import Code

from libs.common.errors import (
    AppError,
    Invalid,
    Malformed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from services.ingest.domain.channel import Channel
from services.ingest.domain.command import Delivered, Outgoing, to_json
from services.ingest.domain.protocol import PayloadFormat
from services.ingest.protocols.coap.blocks import MOST_OPEN, Assemblies, Incomplete, block_of
from services.ingest.protocols.coap.datagram import (
    FORMATS,
    LARGEST_BLOCK,
    NON,
    Named,
    read_path,
    refusal,
    unknown_critical_options,
)
from services.ingest.protocols.coap.engine import Unreceived, made_once, with_receipt
from services.ingest.protocols.coap.guests import JSON, Guest, changed, latest_values
from services.ingest.protocols.coap.limits import CoapLimits
from services.ingest.protocols.coap.links import links
from services.ingest.protocols.coap.reading import reader_for
from services.ingest.protocols.coap.secured import Opened, Protecting, Secured
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import accept

log = structlog.get_logger(__name__)

POLL_S = 0.8
"""How long somebody who asks for a command, and does not observe, is kept waiting for one."""
LATEST_EVERY_S = 1.0
MOST_OBSERVED = 4
"""By one device; of more the oldest ends."""
MOST_ASKED = 64
"""Requests of one device that are being looked at; what it observes is one."""
STRANGERS_BLOCK = 1
"""32 bytes: with what stands beside them less than three times the shortest question there is."""
TELEMETRY = ("telemetry",)

Ask = Callable[[Guest, Message, bytes, Any], Awaitable[Message | None]]
"""Answers a request, given its body and aiocoap's pipe; None: it answered by itself."""

REPORTS = {
    "attributes": Channel.ATTRIBUTES,
    "alerts": Channel.ALERTS,
    "status": Channel.STATUS,
    "replies": Channel.REPLIES,
}


class Host(Protocol):
    """What the endpoint does for its resources."""

    reception: Reception
    limits: CoapLimits

    def met(self, guest: Guest, written: PayloadFormat | None = None) -> None:
        """Note that a device spoke."""
        ...

    def too_large(self) -> TooLarge:
        """Return what is said of a message that is too large."""
        ...


class Observation:
    """A device that observes something, until it, or somebody here, ends that."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.is_over = False

    def notify(self, message: Message) -> None:
        """Send a notification. Raises Unavailable if the observation is over, or as `Protecting`."""
        if self.is_over:
            raise Unavailable("the device does not observe any more")
        self._pipe.add_response(message, is_last=False)

    def end(self, reason: AppError) -> None:
        """Tell the device that it is over."""
        if not self.is_over:
            self.is_over = True
            self._pipe.add_response(refusal(reason), is_last=True)


class Site(Resource):
    """Answers all requests that come to the endpoint, but for telemetry on its fast way."""

    def __init__(self, host: Host, secured: Secured) -> None:
        super().__init__()
        self._host = host
        self._secured = secured
        self._assemblies = Assemblies(MOST_OPEN, host.limits.message_bytes)
        self._observed: dict[UUID, dict[Observation, None]] = {}
        """By device, the oldest first."""
        self._observers = 0
        self._number = 0
        self._posts: dict[tuple[str, ...], Ask] = {
            TELEMETRY: self._telemetry,
            **{(name,): partial(self._report, channel) for name, channel in REPORTS.items()},
        }
        self._gets: dict[tuple[str, ...], Ask] = {
            ("commands",): self._commands,
            ("latest",): self._latest,
        }

    def cut(self, device_id: UUID, reason: str) -> None:
        """End what a device observes, and forget its keys."""
        for observation in list(self._observed.get(device_id, ())):
            observation.end(Unauthenticated(reason))
        self._secured.forget(device_id)

    # --- aiocoap.interfaces.Resource

    async def render(self, request: Message) -> Message:
        raise NotImplementedError("requests are answered by render_to_pipe")

    async def needs_blockwise_assembly(self, request: Message) -> bool:
        return False

    async def render_to_pipe(self, pipe: Any) -> None:
        """Answer the request of a device that is let in."""
        opened: Opened | None = getattr(pipe.request, "opened", None)
        await self._serve(pipe if opened is None else Protecting(pipe, opened))

    # --- one request

    async def _serve(self, pipe: Any) -> None:
        try:
            answer = await self._answer(pipe)
        except Incomplete:
            answer = Message(code=Code.REQUEST_ENTITY_INCOMPLETE, payload=b"a block is missing")
        except AppError as error:
            answer = refusal(error)
            if isinstance(error, TooLarge):
                answer.opt.size1 = self._host.limits.message_bytes
        except Exception:
            # Ours to find: what HTTP calls 500.
            log.exception("a coap request failed")
            answer = Message(code=Code.INTERNAL_SERVER_ERROR)
        if answer is not None:
            if answer.opt.no_response is None:
                answer.opt.no_response = pipe.request.opt.no_response
            pipe.add_response(answer, is_last=True)

    async def _answer(self, pipe: Any) -> Message | None:
        request = pipe.request
        options = request.opt
        guest: Guest = request.remote.guest
        if guest.asked >= MOST_ASKED:
            raise Unavailable("too much of the device's is under way", retry_after_s=2)
        quotas = self._host.reception.quotas
        quotas.check(guest.source)
        guest.asked += 1
        try:
            named = _named(request)
            if not isinstance(named, Named):
                return named
            ask = self._find(request.code, named)
            if ask is None:
                return Message(code=Code.METHOD_NOT_ALLOWED)
            self._host.met(guest)
            body = request.payload
            if options.block1 is not None:
                assembled = self._assemble(guest, request)
                if assembled is None:
                    quotas.spend(guest.source, 0)
                    return Message(code=Code.CONTINUE, block1=options.block1)
                body = assembled
            elif len(body) > self._host.limits.message_bytes:
                raise self._host.too_large()
            if named.path != TELEMETRY:
                quotas.spend(guest.source, 0)
            answer = await ask(guest, request, body, pipe)
            if answer is not None and options.block1 is not None:
                answer.opt.block1 = options.block1
            return answer
        finally:
            guest.asked -= 1

    def _find(self, code: Code, named: Named) -> Ask | None:
        """Return who answers; None if the method is wrong. Raises NotFound."""
        path = named.path
        if len(path) == 3 and path[0] == "commands" and path[2] == "reply":
            return partial(self._reply, path[1]) if code is Code.POST else None
        if path in self._posts:
            return self._posts[path] if code is Code.POST else None
        if path in self._gets:
            return self._gets[path] if code is Code.GET else None
        raise NotFound("no such resource: see /.well-known/core")

    def _assemble(self, guest: Guest, request: Message) -> bytes | None:
        options = request.opt
        name = (
            request.remote.blockwise_key,
            options.uri_path,
            options.uri_query,
            options.content_format,
        )
        now = asyncio.get_running_loop().time()
        return self._assemblies.take(
            guest.source.device_id, name, options.block1, request.payload, options.size1, now
        )

    # --- resources

    async def _telemetry(self, guest: Guest, request: Message, body: bytes, _: Any) -> Message:
        reception = self._host.reception
        written, read = reader_for(guest.source, request.opt.content_format, body)
        decoded = read(body, reception.clock.now(), reception.window)
        reception.quotas.spend(guest.source, len(decoded.points))
        self._host.met(guest, written)
        refused = await accept(
            reception.intake,
            guest.source,
            decoded,
            within=reception.believed.within,
        )
        guest.note_latest(decoded.points)
        return changed(refused)

    async def _report(
        self, channel: Channel, guest: Guest, request: Message, body: bytes, _: Any
    ) -> Message:
        number = request.opt.content_format
        if number is not None and FORMATS.get(int(number)) is not PayloadFormat.JSON:
            return Message(code=Code.UNSUPPORTED_CONTENT_FORMAT, payload=b"taken is 50: JSON")
        reception = self._host.reception
        try:
            async with asyncio.timeout(self._host.limits.answer_within_s):
                await reception.reports.take(guest.source, channel, body, reception.clock.now())
        except TimeoutError:
            raise Unavailable("it is not safe yet; send again", retry_after_s=2) from None
        return Message(code=Code.CHANGED)

    async def _reply(
        self, command: str, guest: Guest, request: Message, body: bytes, pipe: Any
    ) -> Message:
        try:
            said = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Malformed(f"not JSON: {error}") from error
        if not isinstance(said, dict):
            raise Invalid("a reply is an object")
        whole = msgspec.json.encode({**said, "id": command})
        return await self._report(Channel.REPLIES, guest, request, whole, pipe)

    async def _latest(self, guest: Guest, request: Message, _: bytes, pipe: Any) -> Message | None:
        if request.opt.observe != 0:
            return _in_blocks(request, latest_values(guest))
        observation = self._observe(guest, pipe)
        news = asyncio.Event()
        guest.watchers.add(news)
        try:
            first = _in_blocks(request, latest_values(guest))
            first.opt.observe = self._next_number()
            observation.notify(first)
            while True:
                await asyncio.sleep(LATEST_EVERY_S)
                await news.wait()
                news.clear()
                message = _in_blocks(request, latest_values(guest))
                message.opt.observe = self._next_number()
                receipt = None if request.mtype == NON else with_receipt(message)
                try:
                    observation.notify(message)
                except Unavailable:
                    if observation.is_over:
                        return None
                    news.set()  # it cannot be protected now; in a second, perhaps
                    continue
                if receipt is not None:
                    await receipt
        except Unreceived:
            return None
        finally:
            guest.watchers.discard(news)
            self._over(guest, observation)

    async def _commands(
        self, guest: Guest, request: Message, _: bytes, pipe: Any
    ) -> Message | None:
        block = request.opt.block2
        if block is not None and block.block_number > 0:
            return block_of(guest.command, block, LARGEST_BLOCK)
        if request.opt.observe != 0:
            return await self._poll(guest, request)
        observation = self._observe(guest, pipe)
        downlinks = self._host.reception.downlinks

        async def send(outgoing: Outgoing) -> Delivered:
            message = _command(guest, outgoing, request)
            message.opt.observe = self._next_number()
            receipt = with_receipt(message)
            observation.notify(message)
            try:
                await receipt
            except Unreceived as error:
                observation.is_over = True
                raise Unavailable(str(error)) from error
            return Delivered.ACKNOWLEDGED

        try:
            # Nothing waits: an observation begins with an answer, a command is a notification.
            observation.notify(Message(code=Code.CONTENT, observe=self._next_number()))
            downlinks.attach(guest.source, send)
            await asyncio.get_running_loop().create_future()  # until nobody is interested any more
        finally:
            downlinks.detach(guest.source, send)
            self._over(guest, observation)
        return None

    async def _poll(self, guest: Guest, request: Message) -> Message:
        """Answer with the next command, if one comes soon; else with nothing."""
        downlinks = self._host.reception.downlinks
        next_one: asyncio.Future[Outgoing] = asyncio.get_running_loop().create_future()

        async def send(outgoing: Outgoing) -> Delivered:
            if next_one.done():
                raise Unavailable("the device asked for one command")
            next_one.set_result(outgoing)
            return Delivered.SENT

        if self._observed.get(guest.source.device_id):
            return Message(code=Code.CONTENT)  # it gets its commands as notifications
        downlinks.attach(guest.source, send, 1)
        try:
            async with asyncio.timeout(POLL_S):
                return made_once(_command(guest, await next_one, request))
        except TimeoutError:
            return Message(code=Code.CONTENT)
        finally:
            downlinks.detach(guest.source, send)

    # --- observations

    def _observe(self, guest: Guest, pipe: Any) -> Observation:
        """Let a device observe. Raises Unavailable if that is too much of all devices."""
        observed = self._observed.get(guest.source.device_id, {})
        if len(observed) >= MOST_OBSERVED:
            # A device that was switched off says nothing; when it is back it has another token.
            next(iter(observed)).end(Unavailable("a newer one took its place", retry_after_s=60))
        elif self._observers >= self._host.limits.observers:
            raise Unavailable("too much is observed", retry_after_s=60)
        observation = Observation(pipe)
        self._observed.setdefault(guest.source.device_id, {})[observation] = None
        self._observers += 1
        return observation

    def _over(self, guest: Guest, observation: Observation) -> None:
        observation.is_over = True
        observed = self._observed.get(guest.source.device_id)
        if observed is not None and observation in observed:
            del observed[observation]
            self._observers -= 1
            if not observed:
                del self._observed[guest.source.device_id]

    def _next_number(self) -> int:
        """Return an Observe number: larger than all before it, also of an earlier observation."""
        self._number = (self._number + 1) & 0xFFFFFF
        return self._number


def stranger(request: Message) -> Message:
    """Return what is said to somebody who shows no credential."""
    try:
        named = _named(request)
    except AppError as error:
        return refusal(error)
    if isinstance(named, Message):
        return named
    return refusal(Unauthenticated("no token: /v1/{token}/…, ?token=, OSCORE or DTLS"))


def _named(request: Message) -> Named | Message:
    """Return what a request names, or how it is answered whoever asks. Raises NotFound."""
    options = request.opt
    if options.proxy_uri is not None or options.proxy_scheme is not None:
        return Message(code=Code.PROXYING_NOT_SUPPORTED)
    if unknown := unknown_critical_options(request):
        return Message(code=Code.BAD_OPTION, payload=f"options {unknown}".encode())
    if options.uri_path == (".well-known", "core"):
        return _discover(request)
    named = read_path(options.uri_path, options.uri_query)
    if named is None:
        raise NotFound("no such resource: see /.well-known/core")
    return named


def _discover(request: Message) -> Message:
    if request.code is not Code.GET:
        return Message(code=Code.METHOD_NOT_ALLOWED)
    if request.opt.accept not in (None, 40):
        return Message(code=Code.NOT_ACCEPTABLE)
    answer = Message(
        code=Code.CONTENT, content_format=40, payload=links(request.opt.uri_query).encode()
    )
    largest = LARGEST_BLOCK if request.remote.is_proved else STRANGERS_BLOCK
    return block_of(answer, request.opt.block2, largest)


def _command(guest: Guest, outgoing: Outgoing, request: Message) -> Message:
    """Return a command, or its beginning; the rest is asked for in blocks, until the next one leaves."""
    command = guest.command = Message(
        code=Code.CONTENT, content_format=JSON, payload=to_json(outgoing)
    )
    return block_of(command, request.opt.block2, LARGEST_BLOCK)


def _in_blocks(request: Message, answer: Message) -> Message:
    answer.opt.etag = hashlib.sha256(answer.payload).digest()[:8]
    return block_of(answer, request.opt.block2, request.remote.largest_block)
