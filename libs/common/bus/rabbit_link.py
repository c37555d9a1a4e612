"""A connection to RabbitMQ that comes back by itself, and channels that do."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator

import structlog
from aiormq import Connection
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPError
from yarl import URL

from libs.common.tasks import end, is_own_cancellation

log = structlog.get_logger(__name__)

BROKEN = (AMQPError, OSError, TimeoutError, RuntimeError)
"""What aiormq raises when the broker or the way to it is at fault (RuntimeError: it was closed already)."""

CONNECT_S = 10.0
OPEN_S = 30.0
"""A broker that starts may take its time over a queue; one that never answers must be noticed."""
HEARTBEAT_S = 10
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row: 0.1 to 5 s, spread by chance."""
    doubled = FIRST_PAUSE_S * 2.0 ** min(max(failures, 1) - 1, 10)
    return min(LONGEST_PAUSE_S, doubled) * random.uniform(0.75, 1.25)


@contextlib.contextmanager
def closing_is_an_error() -> Iterator[None]:
    """Turn the CancelledError by which aiormq may say that a channel closed into ConnectionAbortedError.

    A cancellation of the task itself passes.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        if is_own_cancellation(error):
            raise
        raise ConnectionAbortedError("the connection to the broker was closed") from error


class Link:
    """Keeps one connection open from `start` to `stop`.

    `prepare` runs on each new one; `transport` opens its socket, if not as usual.
    """

    def __init__(
        self,
        url: str,
        name: str,
        prepare: Callable[[AbstractConnection], Awaitable[None]] | None = None,
        *,
        transport: TransportFactory | None = None,
    ) -> None:
        self._url = URL(url).update_query(name=name, heartbeat=str(HEARTBEAT_S))
        self._name = name
        self._prepare = prepare
        self._transport = transport
        self._current: AbstractConnection | None = None
        self._up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    def start(self) -> None:
        """Connect as soon as the broker is there, and stay connected from then on."""
        self._task = asyncio.create_task(self._keep(), name=f"bus.link.{self._name}")

    async def stop(self) -> None:
        """Close the connection and open no other."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    async def connection(self) -> AbstractConnection:
        """Return the connection, waiting for it if need be."""
        await self._up.wait()
        assert self._current is not None
        return self._current

    async def keep_channel(
        self, use: Callable[[AbstractConnection], Awaitable[AbstractChannel]]
    ) -> None:
        """Call `use` to open a channel, and again whenever that has closed, for ever."""
        failures = 0
        while True:
            connection = await self.connection()
            try:
                with closing_is_an_error():
                    async with asyncio.timeout(OPEN_S):
                        channel = await use(connection)
                failures = 0
                await wait_closed(channel.closing)
            except BROKEN as error:
                log.warning("a channel failed", link=self._name, error=repr(error))
            failures += 1
            await asyncio.sleep(pause_s(failures))

    async def _keep(self) -> None:
        failures = 0
        while True:
            connection = Connection(self._url, transport_factory=self._transport)
            try:
                with closing_is_an_error():
                    async with asyncio.timeout(CONNECT_S):
                        await connection.connect()
                        if self._prepare is not None:
                            await self._prepare(connection)
                self._current, failures = connection, 0
                self._up.set()
                await wait_closed(connection.closing)
            except BROKEN as error:
                log.warning("no connection to the broker", link=self._name, error=repr(error))
            finally:
                self._up.clear()
                self._current = None
                await _close(connection)
            failures += 1
            await asyncio.sleep(pause_s(failures))


async def wait_closed(closing: asyncio.Future[object]) -> None:
    """Wait until a connection or channel has closed, whatever the reason it gives."""
    # Not awaited itself: it may hold a CancelledError, which would look like our own.
    await asyncio.wait([closing])


async def _close(connection: Connection) -> None:
    if not hasattr(connection, "connection_tune"):
        return  # never came up: it has closed its socket itself
    with contextlib.suppress(*BROKEN), closing_is_an_error():
        async with asyncio.timeout(5):
            await connection.close()
