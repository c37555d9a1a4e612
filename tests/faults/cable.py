"""A cable between a device and its platform, which a test may freeze or cut."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast


class Cable:
    """Forwards TCP connections, and datagrams of the same port, until something is done to it.

    `freeze` is the half-open connection: what is connected stays so, and neither end ever hears of
    the other again. New connections pass.
    """

    def __init__(self, host: str, port: int, *, listen: str = "127.0.0.1") -> None:
        self.to = (host, port)
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self.ends: set[_End] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen, on any port that is free for both."""
        loop = asyncio.get_running_loop()
        while self._datagrams is None:
            self._server = await loop.create_server(lambda: _Near(self), self._listen, 0)
            self.port = self._server.sockets[0].getsockname()[1]
            try:
                self._datagrams, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self.to), local_addr=(self._listen, self.port)
                )
            except OSError as error:
                self._server.close()
                if error.errno != errno.EADDRINUSE:
                    raise

    def stop(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        if self._datagrams is not None:
            self._datagrams.close()
        for end in list(self.ends):
            end.abort()

    def freeze(self) -> int:
        """Let nothing pass any more on the connections there are; return how many these were."""
        for end in self.ends:
            end.freeze()
        return len(self.ends) // 2


class _End(asyncio.Protocol):
    """One end of a connection: what it receives the other one sends."""

    def __init__(self, cable: Cable) -> None:
        self._cable = cable
        self._transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._waiting = bytearray()
        self._is_frozen = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._cable.ends.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_frozen:
            return
        if self.other is None or self.other._transport is None:
            self._waiting += data
        else:
            self.other._transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other._transport is not None:
            self.other._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cable.ends.discard(self)
        if self.other is not None and not self._is_frozen:
            self.other.abort()

    def join(self, other: "_End") -> None:
        """Be the other end of this one."""
        self.other, other.other = other, self
        if other._transport is not None:
            other._transport.write(bytes(self._waiting))

    def freeze(self) -> None:
        """Stay connected, and say nothing any more."""
        self._is_frozen = True
        if self._transport is not None:
            self._transport.pause_reading()

    def abort(self) -> None:
        """End without a word."""
        if self._transport is not None:
            self._transport.abort()


class _Near(_End):
    """The device's end; it opens the platform's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Held on to: a task that nobody knows may be collected.
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, far = await loop.create_connection(lambda: _End(self._cable), *self._cable.to)
        except OSError:
            self.abort()
        else:
            self.join(far)


class _Datagrams(asyncio.DatagramProtocol):
    """Gives each device a port of its own towards the platform, so that it is told from others."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._transport: asyncio.DatagramTransport | None = None
        self._ways: dict[tuple[str, int], asyncio.Future[asyncio.DatagramTransport]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for way in self._ways.values():
            if way.done() and not way.cancelled():
                way.result().close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        way = self._ways.get(addr)
        if way is None:
            way = self._ways[addr] = asyncio.ensure_future(self._open(addr))
        way.add_done_callback(lambda done: done.result().sendto(data))

    async def _open(self, device: tuple[str, int]) -> asyncio.DatagramTransport:
        assert self._transport is not None
        answers: asyncio.DatagramTransport = self._transport

        class Back(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                answers.sendto(data, device)

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Back, remote_addr=self._to
        )
        return transport


@asynccontextmanager
async def cable_to(host: str, port: int, *, listen: str = "127.0.0.1") -> AsyncIterator[Cable]:
    """Lay a cable for as long as the block lasts."""
    cable = Cable(host, port, listen=listen)
    await cable.start()
    try:
        yield cable
    finally:
        cable.stop()
