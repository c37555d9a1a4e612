"""DTLS 1.2 with keys shared beforehand (RFC 4279), before the CoAP endpoint; OpenSSL speaks it.

Whoever has no session gets a cookie, and nothing is kept of him until he sends it back from the same
address (RFC 6347, 4.2.1). Each address then has a session of its own, whose datagrams go through OpenSSL's
memory and not through its sockets. OpenSSL asks for a key in the midst of a handshake and cannot wait. So
the name that the device gives itself is read from its ClientKeyExchange, its key is fetched, and OpenSSL
sees the datagram only then.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, cast
from uuid import UUID

import structlog
from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from libs.common.addresses import origin_of
from libs.common.errors import AppError, Unauthenticated
from services.ingest.domain.credential import CredentialKind
from services.ingest.domain.device import Source
from services.ingest.protocols.coap.duplicates import Address, Peer
from services.ingest.protocols.coap.endpoint import Endpoint, open_port
from services.ingest.protocols.coap.secured import find_secret
from services.ingest.usecases.credentials import Secrets

log = structlog.get_logger(__name__)

CIPHERS = (
    "ECDHE-PSK-CHACHA20-POLY1305:PSK-AES128-GCM-SHA256:PSK-AES256-GCM-SHA384"
    ":PSK-CHACHA20-POLY1305:PSK-AES128-CCM:PSK-AES256-CCM"
    # What each CoAP device has (RFC 7252, 9.1.3.1). Its tags are of 64 bits, which OpenSSL takes at
    # level 0 alone; a forger has one try a datagram.
    ":PSK-AES128-CCM8:PSK-AES256-CCM8:@SECLEVEL=0"
)
DTLS_1_2 = 0xFEFD
MTU = 1280
"""Bytes that each path lets through; blocks of 1,024 bytes fit in."""
COOKIE_S = 60.0
"""How long cookies are made with one key; the one before is good too."""
HANDSHAKE_S = 15.0
MOST_HANDSHAKES = 1_000
MOST_OF_DEVICE = 4
"""Sessions of one device, of which the oldest gives way: its address changes, and UDP tells nobody."""
MOST_LOOKED_UP = 100
"""Keys that are fetched at the same time. Who is one too many sends again a second later."""
MOST_HELD = 4
"""Datagrams that wait for a key."""
LONGEST_HELLO = 2_048
LONGEST_RECORD = 16_384

RECORD = 13
"""Bytes before a record's content."""
HANDSHAKE_HEAD = 12
CHANGE_CIPHER, HANDSHAKE = 20, 22
CLIENT_HELLO, CLIENT_KEY_EXCHANGE = 1, 16


class Record(NamedTuple):
    """A record of a datagram, as far as anybody can read it."""

    kind: int
    is_encrypted: bool
    content: bytes


def records(datagram: bytes) -> Iterator[Record]:
    """Yield the records of a datagram, up to where it is none."""
    at = 0
    while len(datagram) - at >= RECORD and datagram[at + 1] == DTLS_1_2 >> 8:
        length = int.from_bytes(datagram[at + 11 : at + 13])
        content = datagram[at + RECORD : at + RECORD + length]
        if len(content) < length:
            return
        yield Record(datagram[at], datagram[at + 3 : at + 5] != b"\0\0", content)
        at += RECORD + length


def hello_in(datagram: bytes) -> bytes | None:
    """Return the random number of the ClientHello that a datagram begins with, if it does.

    It is the same in what a device sends again, and in its second hello, with the cookie.
    """
    first = next(records(datagram), None)
    if first is None or first.kind != HANDSHAKE or first.is_encrypted:
        return None
    body = first.content[HANDSHAKE_HEAD:]
    if first.content[:1] != bytes([CLIENT_HELLO]) or len(body) < 34:
        return None
    return body[2:34]


def identity_in(datagram: bytes) -> str | None:
    """Return by what name a device's key is to be found, if the datagram says it.

    A ClientKeyExchange in fragments says nothing: it is far too short for that.
    """
    for record in records(datagram):
        head, body = record.content[:HANDSHAKE_HEAD], record.content[HANDSHAKE_HEAD:]
        if record.kind != HANDSHAKE or record.is_encrypted or len(body) < 2:
            continue
        is_whole = head[1:4] == head[9:12]
        if head[0] == CLIENT_KEY_EXCHANGE and is_whole:
            identity = body[2 : 2 + int.from_bytes(body[:2])]
            return identity.decode(errors="replace")
    return None


@dataclass(slots=True, eq=False)
class Session:
    """What is kept of an address that sent its cookie back."""

    connection: SSL.Connection
    address: Address
    peer: Peer
    hello: bytes
    """The random number that the device began with."""
    began_at: float
    identity: str = ""
    secret: bytes = b""
    """The key of the identity; empty: it has none, or it was not asked for yet."""
    source: Source | None = None
    held: list[bytes] | None = None
    """What waits for the key to be fetched; None: it is not being fetched."""
    is_open: bool = False
    is_over: bool = False
    last_flight: set[int] = field(default_factory=set)
    """Which parts of the device's last flight came since its key is known."""


class Dtls(asyncio.DatagramProtocol):
    """Listens at a UDP port for devices that speak DTLS, and brings the endpoint what they say."""

    def __init__(self, endpoint: Endpoint, shared: Secrets, most: int) -> None:
        self._endpoint = endpoint
        self._reception = endpoint.reception
        self._shared = shared
        self._most = most
        self._transport: asyncio.DatagramTransport | None = None
        self._cookie_key = secrets.token_bytes(32)
        self._handshakes: OrderedDict[Address, Session] = OrderedDict()
        """The oldest first."""
        self._open: OrderedDict[Address, Session] = OrderedDict()
        """The one that was silent longest first."""
        self._of_device: dict[UUID, list[Session]] = {}
        self._by_number: dict[int, Session] = {}
        """Those that are open, by their peers' numbers."""
        self._numbers = count(1)
        self._looked_up = 0
        self._asking: Session | None = None
        """Whose handshake OpenSSL is at, and so for whom it asks for a key."""
        self.ignored = 0
        """Datagrams that are of no session and begin none."""
        self.failed = 0
        """Datagrams that a fault of ours kept from being looked at."""
        self._told_of = (0, 0)
        self._psk_callback = ffi.callback(
            "unsigned int (*)(SSL *, const char *, unsigned char *, unsigned int)", self._key_of
        )
        self._context = self._new_context()
        self._listening = self._new_connection()
        """Answers those who have no cookie; becomes the session of the first who has one."""
        endpoint.send_secured = self.send
        self._reception.sources.on_revoked.append(self._cut)
        self._reception.on_tick.append(self._tick)

    @property
    def sessions(self) -> int:
        """How many there are, with those that are beginning."""
        return len(self._open) + len(self._handshakes)

    async def listen(self, host: str, port: int) -> int:
        """Open the port and return its number (for port 0, one that is free)."""
        self._loop = asyncio.get_running_loop()
        number = await open_port(host, port, self)
        log.info("coap listens", host=host, port=number, dtls=True)
        return number

    async def stop(self) -> None:
        """Tell the devices that their sessions are over, so that they begin anew at once."""
        for session in [*self._handshakes.values(), *self._open.values()]:
            self._drop(session)
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # --- OpenSSL

    def _new_context(self) -> SSL.Context:
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        context.set_min_proto_version(DTLS_1_2)
        context.set_cipher_list(CIPHERS.encode())
        context.set_options(
            SSL.OP_NO_QUERY_MTU
            | (SSL.OP_COOKIE_EXCHANGE or 0)
            | SSL.OP_NO_RENEGOTIATION
            # A ticket would let a device go on whose key was withdrawn.
            | SSL.OP_NO_TICKET
        )
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_cookie_generate_callback(lambda asked: self._cookie(asked, 0))
        context.set_cookie_verify_callback(self._is_cookie)
        # pyOpenSSL has no name for this one; cryptography, which it stands on, binds it.
        lib.SSL_CTX_set_psk_server_callback(context._context, self._psk_callback)
        return context

    def _new_connection(self) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(MTU)
        return connection

    def _cookie(self, asked: SSL.Connection, age: int) -> bytes:
        turn = int(self._loop.time() // COOKIE_S) - age
        told = f"{turn} {asked.get_app_data()}".encode()
        return hmac.new(self._cookie_key, told, hashlib.sha256).digest()

    def _is_cookie(self, asked: SSL.Connection, shown: bytes) -> bool:
        return any(hmac.compare_digest(shown, self._cookie(asked, age)) for age in (0, 1))

    def _key_of(self, _: Any, identity: Any, room: Any, size: int) -> int:
        """Give OpenSSL the key of the device that it is at; 0: there is none."""
        session = self._asking
        if session is None or not session.secret or len(session.secret) > size:
            return 0
        if ffi.string(identity) != session.identity.encode():
            return 0  # not what the key was fetched for
        ffi.memmove(room, session.secret, len(session.secret))
        return len(session.secret)

    # --- in

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            log.error(
                "coap: the dtls socket is lost; nobody is heard until a restart", error=str(exc)
            )

    def error_received(self, exc: Exception) -> None:
        log.debug("coap: a dtls datagram could not be delivered", error=str(exc))

    def datagram_received(self, data: bytes, addr: Address) -> None:
        try:
            self._look_at(data, addr)
        except Exception:
            # Ours to find; told once a second, so that nobody fills the log with it.
            if self.failed == self._told_of[1]:
                log.exception("a dtls datagram could not be looked at")
            self.failed += 1

    def _look_at(self, data: bytes, addr: Address) -> None:
        session = self._open.get(addr) or self._handshakes.get(addr)
        hello = hello_in(data)
        # One that is sent again changes nothing: OpenSSL passes over it.
        if hello is not None and (session is None or session.hello != hello):
            self._greet(data, addr, hello)
        elif session is None:
            self.ignored += 1
        elif session.held is not None:
            if len(session.held) < MOST_HELD:
                session.held.append(data)
        elif (identity := self._asks_for(session, data)) is not None:
            self._hold(session, identity, data)
        else:
            self._take(session, data)

    def _greet(self, data: bytes, address: Address, hello: bytes) -> None:
        """Answer a hello with a cookie, or begin a session if it brings one."""
        if len(data) > LONGEST_HELLO:
            self.ignored += 1
            return
        connection = self._listening
        connection.set_app_data(address)
        connection.bio_write(data)
        try:
            connection.DTLSv1_listen()
        except SSL.WantReadError:
            self._flush(connection, address)
            return
        except SSL.Error:
            self.ignored += 1
            self._listening = self._new_connection()
            return
        self._listening = self._new_connection()
        # He is where he says: what was there before him has lost its address (RFC 6347, 4.2.8).
        before = self._open.get(address) or self._handshakes.get(address)
        if before is not None:
            self._forget(before)
        if len(self._handshakes) >= MOST_HANDSHAKES:
            self._forget(next(iter(self._handshakes.values())))
        peer = Peer(address[0], address[1], next(self._numbers))
        session = Session(connection, address, peer, hello, self._loop.time())
        self._handshakes[address] = session
        self._take(session, b"")

    @staticmethod
    def _asks_for(session: Session, data: bytes) -> str | None:
        """Return whose key a datagram needs that was not fetched yet."""
        return None if session.is_open or session.secret else identity_in(data)

    def _hold(self, session: Session, identity: str, data: bytes) -> None:
        """Let a datagram wait for the key that it needs."""
        if self._looked_up >= MOST_LOOKED_UP:
            return
        self._looked_up += 1
        session.held = [data]
        session.identity = identity
        self._reception.spawn(self._fetch(session))

    async def _fetch(self, session: Session) -> None:
        """Fetch a device's key, and let its handshake go on."""
        try:
            await self._find(session)
            held, session.held = session.held or [], None
            for data in held:
                if not session.is_over:
                    self._take(session, data)
        except AppError as error:
            log.info("coap: a dtls key could not be fetched", reason=error.detail)
            session.held = None  # the device sends all of it again
        except Exception:
            # Ours to find. Nobody awaits this task, so it is told here; the device begins anew.
            log.exception("a dtls handshake could not be looked at")
            self._forget(session)
        finally:
            self._looked_up -= 1

    async def _find(self, session: Session) -> None:
        guesses, now = self._reception.guesses, self._loop.time
        if guesses.is_refused(_wrong_key(session), now()):
            self._forget(session)
            return
        try:
            found = await find_secret(
                self._reception,
                self._shared,
                CredentialKind.PSK,
                session.identity,
                _origin(session),
            )
        except Unauthenticated:
            return  # OpenSSL is given no key, and says so
        if found is None:
            self._forget(session)
        else:
            session.source, session.secret = found

    def _take(self, session: Session, data: bytes) -> None:
        """Let OpenSSL read a datagram, and the endpoint what is in it."""
        connection, is_over = session.connection, False
        inside: list[bytes] = []
        self._asking = session
        try:
            if data:
                connection.bio_write(data)
            if not session.is_open:
                connection.do_handshake()
                self._opened(session)
            while True:
                inside.append(connection.recv(LONGEST_RECORD))
        except (SSL.WantReadError, SSL.SysCallError):
            pass  # or, of a datagram that was cut short: its end was unexpected
        except SSL.ZeroReturnError:
            is_over = True
        except SSL.Error as error:
            log.info("coap: a dtls session failed", peer=session.peer.host, reason=_reason(error))
            is_over = True
        finally:
            self._asking = None
        self._flush(connection, session.address)
        if not session.is_open and self._is_wrong(session, data):
            guesses = self._reception.guesses
            guesses.failed(_wrong_key(session), _origin(session), self._loop.time())
            log.info("coap: a dtls key is wrong", identity=session.identity, peer=session.peer.host)
            is_over = True
        if is_over:
            self._drop(session)
        for datagram in inside:
            source = session.source
            if source is not None and not source.is_revoked:
                self._endpoint.receive_secured(datagram, session.peer, source)
        if session.is_open and not session.is_over:
            self._open.move_to_end(session.address)

    @staticmethod
    def _is_wrong(session: Session, data: bytes) -> bool:
        """Whether all came that should have ended the handshake, and did not.

        OpenSSL passes over what it cannot decrypt and waits for better: anybody may have sent it.
        """
        if session.secret:
            session.last_flight.update(
                record.kind
                for record in records(data)
                if record.kind == CHANGE_CIPHER
                or (record.kind == HANDSHAKE and record.is_encrypted)
            )
        return len(session.last_flight) == 2

    def _opened(self, session: Session) -> None:
        source = session.source
        if source is None or source.is_revoked:
            raise SSL.Error("the device may not go on")
        session.is_open = True
        session.secret = b""
        del self._handshakes[session.address]
        # Its own first: a device that roams takes nobody else's place.
        if len(of_device := self._of_device.get(source.device_id, [])) >= MOST_OF_DEVICE:
            self._drop(of_device[0])
        if len(self._open) >= self._most:
            self._drop(next(iter(self._open.values())))
        self._of_device.setdefault(source.device_id, []).append(session)
        self._open[session.address] = session
        self._by_number[session.peer.session] = session

    # --- out

    def send(self, data: bytes, peer: Peer) -> None:
        """Send a device a datagram, if its session is there still."""
        session = self._by_number.get(peer.session)
        if session is None:
            return
        try:
            session.connection.send(data)
        except SSL.Error as error:
            log.info("coap: a dtls session failed", peer=peer.host, reason=_reason(error))
            self._forget(session)
            return
        self._flush(session.connection, session.address)

    def _flush(self, connection: SSL.Connection, address: Address) -> None:
        with suppress(SSL.Error):
            out = connection.bio_read(65_507)
            if self._transport is not None and not self._transport.is_closing():
                self._transport.sendto(out, address)

    # --- what ends

    def _drop(self, session: Session) -> None:
        """End a session, and say so."""
        self._forget(session)
        with suppress(SSL.Error):
            session.connection.shutdown()
        self._flush(session.connection, session.address)

    def _forget(self, session: Session) -> None:
        session.is_over = True
        for known in (self._handshakes, self._open):
            if known.get(session.address) is session:
                del known[session.address]
        self._by_number.pop(session.peer.session, None)
        if session.source is not None:
            of_device = self._of_device.get(session.source.device_id, [])
            if session in of_device:
                of_device.remove(session)
                if not of_device:
                    del self._of_device[session.source.device_id]

    def _cut(self, device_id: UUID, reason: str) -> None:
        for session in list(self._of_device.get(device_id, ())):
            log.info("coap: a dtls session is cut", device_id=str(device_id), reason=reason)
            self._drop(session)

    def _tick(self) -> None:
        if self._transport is None:
            return
        now = self._loop.time()
        for session in list(self._handshakes.values()):
            if now - session.began_at > HANDSHAKE_S:
                self._forget(session)
                continue
            try:
                session.connection.DTLSv1_handle_timeout()
            except SSL.Error:
                self._forget(session)
            self._flush(session.connection, session.address)
        ignored, failed = self.ignored - self._told_of[0], self.failed - self._told_of[1]
        if ignored or failed:
            log.warning("coap: dtls datagrams not looked at", of_nobody=ignored, failed=failed)
            self._told_of = (self.ignored, self.failed)


def _origin(session: Session) -> str:
    """Return whom to count wrong keys against: the address is his own, the cookie shows that."""
    return origin_of(session.peer.host.partition("%")[0])


def _wrong_key(session: Session) -> bytes:
    """Return what a wrong key is remembered by.

    With the port it came from: names are read on the way, and whoever tries wrong keys for a device's,
    at its side perhaps, must not keep the device out.
    """
    shown = f"{session.identity} {session.peer.host} {session.peer.port}"
    return hashlib.sha256(shown.encode()).digest()


def _reason(error: SSL.Error) -> str:
    """Return what OpenSSL says of an error."""
    told = error.args[0] if error.args else None
    return "; ".join(entry[-1] for entry in told) if isinstance(told, list) else str(error)
