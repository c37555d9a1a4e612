"""aiocoap's server on a socket of ours: what is not plain telemetry is answered by it.

aiocoap matches requests and answers, retransmits, acknowledges and observes. What it would remember for
ever so long is kept out of it: duplicates are known to the endpoint, which brings each message once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiocoap import Message
from aiocoap.interfaces import EndpointAddress, MessageInterface
from aiocoap.messagemanager import MessageManager
from aiocoap.numbers import TransportTuning
from aiocoap.protocol import Context
from aiocoap.tokenmanager import TokenManager

from services.ingest.protocols.coap.datagram import ACK, CON, LARGEST_BLOCK, RST, largest_block
from services.ingest.protocols.coap.duplicates import Address

logging.getLogger("coap-engine").setLevel(logging.ERROR)

EMPTY_ACK_S = 1.0
"""A request that is not answered by then is acknowledged, which promises nothing, and answered later.
A device sends it again after two seconds."""


class Tuning(TransportTuning):
    """How requests are answered: by an ACK that carries the answer, if that takes no second."""

    EMPTY_ACK_DELAY = EMPTY_ACK_S


class Confirmed(Tuning):
    """How what must arrive is sent."""

    reliability = True


class Unreceived(Exception):
    """A confirmable message was not acknowledged, or was refused."""


class Remote(EndpointAddress):
    """A device's address."""

    scheme = "coap"
    is_multicast = False
    is_multicast_locally = False
    hostinfo_local = ""
    uri_base_local = "coap://"

    is_proved = False
    """Whether it is known that the device is there: else its address may be forged."""

    def __init__(self, address: Address, asked: int) -> None:
        self.address = address
        self.asked = asked
        """How many bytes the datagram had."""
        self.guest: Any = None
        """The device, once it is let in."""

    @property
    def largest_block(self) -> int:
        """The size exponent of the blocks that it is answered in."""
        return LARGEST_BLOCK if self.is_proved else largest_block(self.asked)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __repr__(self) -> str:
        return f"<Remote {self.hostinfo}>"

    @property
    def hostinfo(self) -> str:
        """The address as it stands in a URI."""
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def uri_base(self) -> str:
        """The URI of the device."""
        return f"coap://{self.hostinfo}"

    @property
    def blockwise_key(self) -> Address:
        """What blocks of one message have in common."""
        return self.address


class _Wire(MessageInterface):
    """aiocoap's way to the socket."""

    def __init__(self, send: Callable[[bytes, Address], None]) -> None:
        self._send = send

    def send(self, message: Message) -> None:
        self._send(message.encode(), message.remote.address)

    async def shutdown(self) -> None:
        """The socket is the endpoint's."""

    async def determine_remote(self, message: Message) -> None:
        """Nobody is asked anything from here."""

    async def recognize_remote(self, remote: object) -> bool:
        return isinstance(remote, Remote)


class _Exchanges(MessageManager):
    """aiocoap's message layer without a memory of its own, which says what was acknowledged."""

    def __init__(self, token_manager: Any, answered: Callable[[Message, Message], None]) -> None:
        super().__init__(token_manager)
        self._answered = answered
        self._receipts: dict[tuple[Any, int], asyncio.Future[None]] = {}

    def send_message(self, message: Message, messageerror_monitor: Any) -> None:
        super().send_message(message, messageerror_monitor)
        if message.request is not None:
            self._answered(message.request, message)

    def _deduplicate_message(self, message: Message) -> bool:
        return False

    def _store_response_for_duplicates(self, message: Message) -> None:
        pass

    def _send_initially(self, message: Message, messageerror_monitor: Any = None) -> None:
        receipt = getattr(message, "receipt", None)
        if receipt is not None:
            self._receipts[message.remote, message.mid] = receipt
        super()._send_initially(message, messageerror_monitor)

    def _continue_backlog(self, remote: Any) -> None:
        # As aiocoap does it, without a look at the exchanges of all others: one at a time is under
        # way to a device, and that one is over.
        backlog = self._backlogs[remote]
        while backlog:
            message, monitor = backlog.pop(0)
            self._send_initially(message, monitor)
            if message.mtype == CON:
                return
        del self._backlogs[remote]

    def _remove_exchange(self, message: Message) -> None:
        receipt = self._receipts.pop((message.remote, message.mid), None)
        if receipt is not None and not receipt.done():
            if message.mtype == ACK:
                receipt.set_result(None)
            else:
                receipt.set_exception(Unreceived("the device does not want it"))
        super()._remove_exchange(message)

    def _retransmit(self, message: Message, timeout: float, retransmission_counter: int) -> None:
        super()._retransmit(message, timeout, retransmission_counter)
        key = (message.remote, message.mid)
        if self._active_exchanges is not None and key not in self._active_exchanges:
            receipt = self._receipts.pop(key, None)
            if receipt is not None and not receipt.done():
                receipt.set_exception(Unreceived("the device does not answer"))


class _Server(Context):
    """aiocoap's context, which knows when nothing more is done about a request."""

    def __init__(self, site: Any, over: Callable[[Message], None]) -> None:
        super().__init__(serversite=site, loggername="coap-engine")
        self._over = over

    def render_to_pipe(self, pipe: Any) -> None:
        # As aiocoap does it, but that a request which ends before it began (another took its token)
        # ends in good order.
        task = asyncio.get_running_loop().create_task(self.serversite.render_to_pipe(pipe))
        task.add_done_callback(lambda _: self._over(pipe.request))
        pipe.on_interest_end(task.cancel)


class Engine:
    """aiocoap's server: datagrams that were read go in, answers come out by `send`.

    `answered` is called with a request and each of its answers, as they leave; `over` when nothing
    more is done about a request.
    """

    def __init__(
        self,
        site: Any,
        send: Callable[[bytes, Address], None],
        answered: Callable[[Message, Message], None],
        over: Callable[[Message], None],
    ) -> None:
        self._over = over
        self._site = site
        self._send = send
        self._answered = answered
        self._context: Any = None
        self._exchanges: Any = None

    async def start(self) -> None:
        """Begin to answer."""
        context = _Server(self._site, self._over)
        tokens = TokenManager(context)
        exchanges = _Exchanges(tokens, self._answered)
        exchanges.message_interface = _Wire(self._send)
        tokens.token_interface = exchanges
        context.request_interfaces.append(tokens)
        self._context, self._exchanges = context, exchanges

    async def stop(self) -> None:
        """Answer no more; observations end without a word."""
        if self._context is not None:
            await self._context.shutdown()
            self._context = self._exchanges = None

    def dispatch(self, message: Message) -> None:
        """Take a message that is no duplicate."""
        if self._exchanges is not None:
            message.transport_tuning = Tuning()
            self._exchanges.dispatch_message(message)


def is_acknowledgement(message: Message) -> bool:
    """Whether a message tells what became of one of ours."""
    return message.mtype in (ACK, RST)


def with_receipt(message: Message) -> "asyncio.Future[None]":
    """Ask for a message to arrive; return what tells that it did, or raises Unreceived."""
    message.transport_tuning = Confirmed()
    receipt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    # Nobody may be there any more to look at a failure.
    receipt.add_done_callback(lambda done: done.cancelled() or done.exception())
    message.receipt = receipt
    return receipt


def made_once(answer: Message) -> Message:
    """Mark an answer that was made by doing something: it cannot be made again."""
    answer.is_made_once = True
    return answer


def is_made_once(answer: Message) -> bool:
    """Whether an answer is marked so."""
    return getattr(answer, "is_made_once", False)
