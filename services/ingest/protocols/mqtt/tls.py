"""TLS for devices: the certificate we show, and the certificates they may show us."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog
from cryptography import x509

from libs.common.clock import Clock

log = structlog.get_logger(__name__)

ENDS_SOON = timedelta(days=14)
ACCEPT_AGAIN_S = 1.0
BACKLOG = 1024

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """The certificate and key of this process, read again when their files change.

    With `client_ca` devices may show a certificate that one of these authorities has signed; they
    need not. A connection keeps what it was made with; the next one gets what is valid then.
    """

    def __init__(
        self, certificate: Path, key: Path | None, client_ca: Path | None, clock: Clock
    ) -> None:
        """Raises OSError or ssl.SSLError if the files cannot be used."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._clock = clock
        self._stamp = self._look()
        self._told: str | None = None
        self.context, self.ends_at = self._load()

    async def renew(self) -> None:
        """Take the files up if they have changed; say so, again and again, if what we have has ended."""
        try:
            stamp = await asyncio.to_thread(self._look)
            if stamp != self._stamp:
                self.context, self.ends_at = await asyncio.to_thread(self._load)
                self._stamp = stamp
                log.info("the certificate was renewed", ends_at=self.ends_at.isoformat())
        except (OSError, ValueError) as error:
            # Such as a certificate that was written before its key: the next look will do.
            log.exception("the new certificate cannot be used; the old one stays", exc_info=error)
        self._warn()

    def _warn(self) -> None:
        left = self.ends_at - self._clock.now()
        if left <= timedelta(0):
            log.error(
                "the certificate has ended: no device that checks it comes in",
                file=str(self._certificate),
                ended_at=self.ends_at.isoformat(),
            )
        elif left <= ENDS_SOON and self._told != self.ends_at.date().isoformat():
            self._told = self.ends_at.date().isoformat()
            log.warning(
                "the certificate ends soon",
                file=str(self._certificate),
                ends_at=self.ends_at.isoformat(),
            )

    def _look(self) -> _Stamp:
        files = [self._certificate, self._key, self._client_ca]
        seen = [file.stat() for file in files if file is not None]
        return tuple((found.st_mtime_ns, found.st_ino, found.st_size) for found in seen)

    def _load(self) -> tuple[ssl.SSLContext, datetime]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Without a password OpenSSL would ask the terminal for the one of an encrypted key, and wait.
        context.load_cert_chain(self._certificate, self._key, password="")
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        shown = x509.load_pem_x509_certificates(self._certificate.read_bytes())[0]
        return context, shown.not_valid_after_utc.astimezone(UTC)


def certificate_of(transport: asyncio.BaseTransport) -> bytes | None:
    """Return the certificate (DER) that the peer has shown and proven to be its own; None without."""
    tls = transport.get_extra_info("ssl_object")
    shown: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
    return shown


class Stranger(Protocol):
    """A connection that can be told of before there is a transport to it."""

    def meet(self, address: str) -> bool:
        """Take it in, from that address; False if there is no room for it."""
        ...

    def connection_lost(self, exc: Exception | None) -> None: ...


class TlsListener:
    """A port with TLS, that tells of those who come before their handshake is over.

    An event loop's own server tells of them afterwards, so that nobody would count who never ends
    it. (And `start_tls`, which begins with a connection, loses on uvloop what came with it.)
    """

    def __init__(
        self,
        listening: socket.socket,
        certificate: Certificate,
        answer: Callable[[], tuple[Stranger, asyncio.Protocol]],
        within_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
    ) -> None:
        """`answer` makes a connection, and what it is spoken through inside of TLS."""
        self._listening = listening
        self._certificate = certificate
        self._answer = answer
        self._within_s = within_s
        self._spawn = spawn
        self._accepting = spawn(self._accept_forever())
        self._accepting.add_done_callback(lambda _: listening.close())

    def close(self) -> None:
        """Take no more connections in."""
        self._accepting.cancel()

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                own, address = await loop.sock_accept(self._listening)
            except OSError as error:
                # Such as too many open files: those that end make room.
                log.warning("no connection can be taken in", error=str(error))
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            stranger, spoken = self._answer()
            if stranger.meet(address[0]):
                self._spawn(self._shake(own, address[0], stranger, spoken))
            else:
                own.close()

    async def _shake(
        self, own: socket.socket, address: str, stranger: Stranger, spoken: asyncio.Protocol
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: spoken,
                own,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._within_s,
            )
        except (OSError, TimeoutError) as error:
            log.info(
                "mqtt tls handshake failed",
                peer=address,
                reason=str(error) or type(error).__name__,
            )
            stranger.connection_lost(error)
            own.close()


def listen_at(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises OSError if the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listening.setblocking(False)
    return listening
