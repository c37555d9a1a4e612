"""OSCORE (RFC 8613): devices that share a secret with us, by aiocoap's implementation.

A device is known by the sender id in its messages. Which of its messages were seen is kept in memory
alone: after a restart, or in another process, the first is answered with an Echo challenge (appendix
B.1.2), which a message that was recorded cannot meet. Our own sequence numbers are reserved in the
database, so many at a time, and never given out twice.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from aiocoap import Message, oscore
from aiocoap.error import RenderableError
from aiocoap.numbers import Code

from libs.common.addresses import origin_of
from libs.common.db.transactions import Transactions
from libs.common.errors import AppError, Unauthenticated, Unavailable
from libs.common.sealing import Unsealable
from services.ingest.domain.credential import CredentialKind, hash_identity
from services.ingest.domain.device import Source
from services.ingest.protocols.coap.duplicates import Address
from services.ingest.protocols.coap.engine import Remote
from services.ingest.protocols.coap.guests import Guest
from services.ingest.store.store import IngestStore
from services.ingest.usecases.credentials import Secrets
from services.ingest.usecases.reception import Reception

log = structlog.get_logger(__name__)

OUR_ID = b"\x00"
"""Our sender id, the device's recipient id."""
RESERVED_AT_ONCE = 1_000

GuestOf = Callable[[Source], Guest]


class DeviceContext(oscore.CanProtect, oscore.CanUnprotect, oscore.SecurityContextUtils):
    """The keys of one device, which messages of its were seen, and our next sequence number."""

    def __init__(self, source: Source, device_id: bytes, secret: bytes) -> None:
        self.source = source
        self.alg_aead = oscore.algorithms[oscore.DEFAULT_ALGORITHM]
        self.hashfun = oscore.hashfunctions[oscore.DEFAULT_HASHFUNCTION]
        self.id_context = None
        self.sender_id = OUR_ID
        self.recipient_id = device_id
        self.derive_keys(b"", secret)
        # Not begun: the first message shows that it is fresh.
        self.recipient_replay_window = oscore.ReplayWindow(oscore.DEFAULT_WINDOWSIZE, _nothing)
        self.echo_recovery = secrets.token_bytes(8)
        self.sender_sequence_number = 0
        self._end = 0
        self._next: tuple[int, int] | None = None
        self.on_low: Callable[[], None] = _nothing
        """Called when numbers should be reserved."""

    def supply(self, first: int, count: int) -> None:
        """Add numbers that are reserved."""
        if self.sender_sequence_number >= self._end:
            self.sender_sequence_number, self._end = first, first + count
        else:
            self._next = (first, first + count)

    def new_sequence_number(self) -> int:
        """Return a number that nobody had before. Raises ContextUnavailable if none is reserved."""
        if self.sender_sequence_number >= self._end:
            if self._next is None:
                self.on_low()
                raise oscore.ContextUnavailable("no sequence number is reserved")
            (self.sender_sequence_number, self._end), self._next = self._next, None
        number: int = super().new_sequence_number()
        return number

    def post_seqnoincrease(self) -> None:
        """See to it that there always are some."""
        if self._next is None and self._end - self.sender_sequence_number < RESERVED_AT_ONCE // 2:
            self.on_low()


class SecuredRemote(Remote):
    """A device that proved itself by OSCORE, and where it is."""

    is_proved = True

    def __init__(self, address: Address, asked: int, guest: Guest, context: DeviceContext) -> None:
        super().__init__(address, asked)
        self.guest: Guest = guest
        self._context = context

    @property
    def blockwise_key(self) -> Any:
        """What blocks of one message have in common."""
        return (self.address, self._context.recipient_key)


class Secured:
    """The devices' security contexts, loaded when they first speak."""

    def __init__(
        self,
        reception: Reception,
        transactions: Transactions[IngestStore],
        shared: Secrets,
        most: int,
    ) -> None:
        self._reception = reception
        self._transactions = transactions
        self._shared = shared
        self._most = most
        self._contexts: dict[bytes, DeviceContext] = {}
        """By the devices' sender ids, the one that was loaded first before all others."""
        self._of_device: dict[UUID, set[bytes]] = {}
        self._loading: dict[bytes, asyncio.Future[None]] = {}
        self._reserving: set[bytes] = set()

    def forget(self, device_id: UUID) -> None:
        """Forget a device's keys: whether it may go on is looked up when it speaks again."""
        for kid in self._of_device.pop(device_id, ()):
            self._contexts.pop(kid, None)

    async def look_up(self, message: Message) -> None:
        """Load the context that a message needs, if there is one. Raises what is transient."""
        kid = _kid_of(message)
        if kid is None or kid in self._contexts:
            return
        loading = self._loading.get(kid)
        if loading is not None:
            await asyncio.wait([loading])
            return
        loading = self._loading[kid] = asyncio.get_running_loop().create_future()
        try:
            await self._load(kid, message.remote.address)
        except AppError as error:
            log.info("coap: no security context", kid=kid.hex(), reason=error.detail)
        finally:
            del self._loading[kid]
            loading.set_result(None)

    async def _load(self, kid: bytes, address: Address) -> None:
        found = await find_secret(
            self._reception,
            self._shared,
            CredentialKind.OSCORE,
            kid.hex(),
            whom_to_charge(address),
        )
        if found is None:
            return
        source, secret = found
        context = DeviceContext(source, kid, secret)
        await self._reserve(context)
        context.on_low = lambda: self._reserve_behind(context)
        if source.is_revoked:
            return
        if len(self._contexts) >= self._most:
            self._let_go(next(iter(self._contexts)))
        self._contexts[kid] = context
        self._of_device.setdefault(source.device_id, set()).add(kid)

    def _let_go(self, kid: bytes) -> None:
        device_id = self._contexts.pop(kid).source.device_id
        own = self._of_device[device_id]
        own.discard(kid)
        if not own:
            del self._of_device[device_id]

    async def _reserve(self, context: DeviceContext) -> None:
        source = context.source
        async with self._transactions.begin(source.tenant_id) as store:
            first = await store.sequences.reserve(
                source.device_id,
                context.recipient_id.hex(),
                RESERVED_AT_ONCE,
                at=self._reception.clock.now(),
            )
        context.supply(first, RESERVED_AT_ONCE)

    def _reserve_behind(self, context: DeviceContext) -> None:
        async def reserve() -> None:
            try:
                await self._reserve(context)
            except AppError as error:
                log.warning("coap: no sequence numbers", reason=error.detail)
            finally:
                self._reserving.discard(context.recipient_id)

        if context.recipient_id not in self._reserving:
            self._reserving.add(context.recipient_id)
            self._reception.spawn(reserve())

    def knows(self, message: Message) -> bool:
        """Whether the context that a message needs is here already."""
        return _kid_of(message) in self._contexts

    def open(self, message: Message, guest_of: GuestOf) -> "Opened | Challenge":
        """Return the request as it was protected.

        A Challenge is for a device that has proved itself, and must now show that it speaks now.
        Raises Unopened, with what is said to one that has proved nothing.
        """
        if message.code not in (Code.POST, Code.FETCH):
            raise Unopened(Code.METHOD_NOT_ALLOWED)
        kid = _kid_of(message)
        context = None if kid is None else self._contexts.get(kid)
        if context is None:
            raise Unopened(Code.UNAUTHORIZED, b"Security context not found")
        try:
            inner, request_id = context.unprotect(message)
        except RenderableError as error:
            return Challenge(_protected(error))
        except oscore.ReplayError:
            raise Unopened(Code.UNAUTHORIZED, b"Replay detected", max_age=0) from None
        except oscore.DecodeError:
            raise Unopened(Code.BAD_OPTION, b"Failed to decode COSE") from None
        except oscore.ProtectionInvalid:
            raise Unopened(Code.BAD_REQUEST, b"Decryption failed") from None
        except oscore.ContextUnavailable:
            raise Unopened(Code.SERVICE_UNAVAILABLE, max_age=2) from None
        except Exception as error:  # noqa: BLE001 - what a decrypted message makes aiocoap's decoder raise
            log.info("coap: a protected message could not be read", error=repr(error))
            raise Unopened(Code.BAD_REQUEST) from None
        remote = message.remote
        inner.remote = SecuredRemote(
            remote.address, remote.asked, guest_of(context.source), context
        )
        # What it came in decides how it is answered; inside there is neither.
        inner.mtype, inner.mid = message.mtype, message.mid
        return Opened(inner, request_id, context)


class Challenge(NamedTuple):
    """A protected answer that asks for an Echo."""

    answer: Message


class Unopened(Exception):
    """A message that shows no secret of ours."""

    def __init__(self, code: Code, payload: bytes = b"", *, max_age: int | None = None) -> None:
        super().__init__(code)
        self.answer = Message(code=code, payload=payload, max_age=max_age)


class Opened:
    """A request that was protected, and what its answers need."""

    def __init__(self, request: Message, request_id: Any, context: DeviceContext) -> None:
        self.request = request
        self.request_id = request_id
        self.context = context


class Protecting:
    """aiocoap's pipe to the device, by which only protected answers leave."""

    def __init__(self, pipe: Any, opened: Opened) -> None:
        self._pipe = pipe
        self._opened = opened
        self.request = opened.request

    def add_response(self, message: Message, is_last: bool = False) -> None:
        """Protect an answer and send it.

        Raises Unavailable if it needs a sequence number and none is reserved now; of the last
        answer the device hears only that, without protection.
        """
        number, unwanted = message.opt.observe, message.opt.no_response
        message.opt.no_response = None
        if number is not None:
            # Inside it says only that this is a notification; the number is seen from outside.
            message.opt.observe = 0
        try:
            protected, _ = self._opened.context.protect(message, self._opened.request_id)
        except oscore.ContextUnavailable as error:
            if not is_last:
                raise Unavailable(str(error), retry_after_s=2) from error
            self._pipe.add_response(Message(code=Code.SERVICE_UNAVAILABLE, max_age=2), is_last=True)
            return
        protected.opt.observe = number
        protected.opt.no_response = unwanted
        receipt = getattr(message, "receipt", None)
        if receipt is not None:
            protected.receipt = receipt
        self._pipe.add_response(protected, is_last=is_last)


async def find_secret(
    reception: Reception, shared: Secrets, kind: CredentialKind, identity: str, origin: str
) -> tuple[Source, bytes] | None:
    """Return whom an identity stands for, and the secret; None if that is not looked up now.

    Raises Unauthenticated if it stands for nobody, which counts against the origin; and Unavailable.
    """
    shown = hash_identity(identity)
    guesses, now = reception.guesses, asyncio.get_running_loop().time
    if guesses.is_refused(shown, now()) or guesses.wait_s(shown, origin, now()) > 0:
        return None
    try:
        found = await shared.of(kind, identity)
    except Unauthenticated:
        guesses.failed(shown, origin, now())
        raise
    except Unsealable:
        log.error("coap: a secret was sealed with another key", kind=kind, identity=identity)
        return None
    guesses.passed(shown)
    return found


def whom_to_charge(address: Address) -> str:
    """Return whom to count wrong credentials against: an address with its port.

    The address alone may be forged, and whoever forges a plant's would keep its devices out. A port
    is one device's, and not known to who does not see its datagrams.
    """
    return f"{origin_of(address[0].partition('%')[0])} {address[1]}"


def _kid_of(message: Message) -> bytes | None:
    """Return the sender id of a protected request; None if it has none that may be ours."""
    try:
        header = oscore.verify_start(message)
    except Exception:  # noqa: BLE001 - aiocoap's decoder raises whatever the option's bytes lead it to
        return None
    kid: bytes | None = header.get(oscore.COSE_KID)
    return None if oscore.COSE_KID_CONTEXT in header else kid


def _protected(error: RenderableError) -> Message:
    try:
        return error.to_message()
    except oscore.ContextUnavailable:
        raise Unopened(Code.SERVICE_UNAVAILABLE, max_age=2) from None


def _nothing() -> None:
    pass
