"""A device that stores and forwards, whatever protocol it speaks.

A device keeps what it measures until the platform has acknowledged it: readings wait in a bounded
queue while the connection is down and are sent again when no acknowledgement came. A reading keeps
its time stamp, so that the platform can recognise what it already has.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from clients.simulator.commands import CommandFailed, OnCommand
from clients.simulator.metrics import Values

log = logging.getLogger(__name__)

COMMANDS_REMEMBERED = 100
"""A command that comes again is answered again and not done again."""


class CredentialRefused(Exception):
    """The platform does not accept this device's token: no retry will help."""


class ConnectionFailed(Exception):
    """The platform cannot be reached, or lost us; a later attempt may succeed."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        """Seconds that the platform asked to be left alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one device measured at one moment."""

    ts: int
    """Milliseconds since 1970, UTC."""
    values: Values

    def body(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.encode({"ts": self.ts, "values": self.values})


@dataclass(slots=True)
class Stats:
    """What became of the readings of a device. Every offered reading ends as exactly one of
    acknowledged, rejected, dropped or still waiting.
    """

    offered: int = 0
    sent: int = 0
    """Given to the socket, each time that this happened."""
    acknowledged: int = 0
    points: int = 0
    """Single values within the acknowledged readings."""
    rejected: int = 0
    """The platform answered that it will never take them."""
    dropped: int = 0
    """Oldest readings pushed out of a full queue."""
    connects: int = 0
    commands: int = 0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.offered + other.offered,
            self.sent + other.sent,
            self.acknowledged + other.acknowledged,
            self.points + other.points,
            self.rejected + other.rejected,
            self.dropped + other.dropped,
            self.connects + other.connects,
            self.commands + other.commands,
        )


@dataclass(slots=True)
class Backoff:
    """Exponential delay with full jitter, so that a fleet does not return all at once.

    After Marc Brooker, "Exponential Backoff And Jitter" (2015), with a floor.
    """

    rng: Random
    first: float = 0.5
    longest: float = 30.0
    attempt: int = 0

    def delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        ceiling = min(self.longest, self.first * 2**self.attempt)
        self.attempt = min(self.attempt + 1, 16)
        return self.rng.uniform(0.1 * ceiling, ceiling)

    def reset(self) -> None:
        """Begin again with the shortest delay: the last attempt succeeded."""
        self.attempt = 0


OnAcknowledged = Callable[[str, Reading], None]
"""Called with the device id and each reading as it is acknowledged; benches keep their ledger by it."""


class Command(msgspec.Struct, frozen=True):
    """What the platform asks a device to do."""

    id: str
    name: str
    params: dict[str, object] = {}


@dataclass
class Device(ABC):
    """A store-and-forward sender; the protocols below differ only in how they talk.

    `offer` may be called at any time; `run` talks until it is cancelled.
    """

    id: str
    token: str = field(repr=False)
    rng: Random
    capacity: int = 10_000
    """Readings kept while they cannot be delivered."""
    window: int = 64
    """Readings under way at once."""
    timeout: float = 20.0
    """Seconds without an answer after which the connection is given up."""
    on_acknowledged: OnAcknowledged | None = None
    on_command: OnCommand | None = None
    """Does what a command asks; None: it knows no command."""
    backoff: Backoff = field(init=False)
    stats: Stats = field(init=False, default_factory=Stats)
    is_connected: bool = field(init=False, default=False)
    is_refused: bool = field(init=False, default=False)
    """The last attempt ended at the platform's door: wrong token, or the device is gone."""

    def __post_init__(self) -> None:
        self.backoff = Backoff(self.rng)
        self._waiting: deque[Reading] = deque()
        self._under_way: dict[int, Reading] = {}
        self._offered = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._last_ts = 0
        self._replies: OrderedDict[str, bytes] = OrderedDict()

    @property
    def backlog(self) -> int:
        """Readings that are not yet acknowledged."""
        return len(self._waiting) + len(self._under_way)

    def offer(self, ts: int, values: Values) -> Reading:
        """Queue a reading; a full queue loses its oldest. Time stamps are made to increase."""
        self._last_ts = max(ts, self._last_ts + 1)
        reading = Reading(self._last_ts, values)
        self.stats.offered += 1
        if self.backlog >= self.capacity and self._waiting:
            self._waiting.popleft()
            self.stats.dropped += 1
        self._waiting.append(reading)
        self._settled.clear()
        self._offered.set()
        return reading

    async def drain(self) -> None:
        """Return when nothing waits for its acknowledgement any more."""
        await self._settled.wait()

    async def run(self) -> None:
        """Connect, forward and reconnect until cancelled.

        Raises CredentialRefused when the platform refuses the token.
        """
        while True:
            retry_after = 0.0
            try:
                await self._session()
            except CredentialRefused:
                self.is_refused = True
                raise
            except ConnectionFailed as failure:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # A disconnect that fails must not hide that we were told to stop.
                    raise asyncio.CancelledError from failure
                retry_after = failure.retry_after
                log.info("device %s: %s", self.id, failure)
            finally:
                self.is_connected = False
                self._take_back()
            await asyncio.sleep(max(retry_after, self.backoff.delay()))

    @abstractmethod
    async def _session(self) -> None:
        """Connect and forward for as long as it lasts; ends only by an exception."""

    @abstractmethod
    async def _deliver(self, reading: Reading) -> None:
        """Send one reading and settle it by `_acknowledge` or `_reject`; else raise."""

    async def _forward_beside(self, *others: Coroutine[Any, Any, object]) -> None:
        """Forward, and do something else beside it, until one of them fails.

        Whoever listens notices that the connection is lost even while nothing is sent or answered.
        """
        tasks = [asyncio.create_task(part) for part in (self._forward(), *others)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self) -> None:
        """Deliver what waits, a window at a time and in order, for ever."""
        while True:
            while not self._waiting:
                self._offered.clear()
                await self._offered.wait()
            batch = self._take()
            results = await asyncio.gather(
                *(self._deliver(reading) for reading in batch), return_exceptions=True
            )
            failures = [result for result in results if isinstance(result, BaseException)]
            if failures:
                raise failures[0]
            # Only an acknowledgement proves that the platform is well again; a platform that
            # accepts connections and then drops them must not be hammered.
            self.backoff.reset()

    def obey(self, command: bytes) -> bytes | None:
        """Do what a command asks and return the reply, both as JSON; None if it is no command.

        The same command again (its reply was lost) is answered as before, without doing it twice.
        """
        try:
            asked = msgspec.json.decode(command, type=Command)
        except msgspec.MsgspecError as error:
            log.warning("device %s: not a command: %s", self.id, error)
            return None
        if (said := self._replies.get(asked.id)) is not None:
            return said
        self.stats.commands += 1
        reply: dict[str, object] = {"id": asked.id}
        try:
            if self.on_command is None:
                raise CommandFailed("this device takes no commands")
            reply |= {
                "status": "succeeded",
                "result": self.on_command(asked.name, asked.params),
            }
        except CommandFailed as failure:
            reply |= {"status": "failed", "error": str(failure)}
        self._replies[asked.id] = encoded = msgspec.json.encode(reply)
        if len(self._replies) > COMMANDS_REMEMBERED:
            self._replies.popitem(last=False)
        return encoded

    def _connected(self) -> None:
        """Note that the platform let us in."""
        if not self.is_connected:
            self.is_connected = True
            self.is_refused = False
            self.stats.connects += 1

    def _take(self) -> Sequence[Reading]:
        batch: list[Reading] = []
        while self._waiting and len(batch) < self.window:
            reading = self._waiting.popleft()
            self._under_way[reading.ts] = reading
            batch.append(reading)
        return batch

    def _take_back(self) -> None:
        """Put what was under way in front of what waits: it goes out first, in its old order."""
        self._waiting.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()

    def _acknowledge(self, reading: Reading) -> None:
        del self._under_way[reading.ts]
        self.stats.acknowledged += 1
        self.stats.points += len(reading.values)
        self._settle()
        if self.on_acknowledged is not None:
            self.on_acknowledged(self.id, reading)

    def _reject(self, reading: Reading, reason: str) -> None:
        del self._under_way[reading.ts]
        self.stats.rejected += 1
        log.warning("device %s: a reading was rejected: %s", self.id, reason)
        self._settle()

    def _settle(self) -> None:
        if not self.backlog:
            self._settled.set()
