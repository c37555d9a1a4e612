"""Devices on real sockets, over MQTT 3.1.1 (QoS 1) and HTTP.

A device keeps what it measures until the platform has acknowledged it: readings wait in a bounded
queue while the connection is down and are sent again when no acknowledgement came. A reading keeps
its time stamp, so that the platform can recognise what it already has.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import aiomqtt
import httpx2
import msgspec
from aiomqtt.exceptions import MqttConnectError

from clients.simulator.metrics import Values

log = logging.getLogger(__name__)


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
        """Return the JSON that both protocols carry."""
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

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            self.offered + other.offered,
            self.sent + other.sent,
            self.acknowledged + other.acknowledged,
            self.points + other.points,
            self.rejected + other.rejected,
            self.dropped + other.dropped,
            self.connects + other.connects,
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
    on_acknowledged: OnAcknowledged | None = None
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


_REFUSALS = {2, 4, 5}
"""CONNACK codes that no retry changes: identifier rejected, bad credentials, not authorised."""


@dataclass
class MqttDevice(Device):
    """Publishes to `v1/devices/{id}/telemetry`; a reading is acknowledged by its PUBACK."""

    host: str = "127.0.0.1"
    port: int = 1883
    timeout: float = 20.0
    """Seconds without a CONNACK or PUBACK after which the connection is given up."""

    async def _session(self) -> None:
        self._client = client = aiomqtt.Client(
            self.host,
            self.port,
            identifier=self.id,
            username=self.id,
            password=self.token,
            protocol=aiomqtt.ProtocolVersion.V311,
            keepalive=30,
            timeout=self.timeout,
        )
        client.pending_calls_threshold = self.window
        try:
            async with client:
                self._connected()
                await self._forward_while_connected()
        except MqttConnectError as error:
            code = _connack_code(error)
            if code in _REFUSALS:
                raise CredentialRefused(str(error)) from error
            raise ConnectionFailed(str(error)) from error
        except aiomqtt.MqttError as error:
            raise ConnectionFailed(str(error)) from error
        finally:
            if not self.is_connected:
                # aiomqtt forgets its socket and its housekeeping when connecting fails half-way.
                client._client.disconnect()

    async def _forward_while_connected(self) -> None:
        """Forward until the connection is lost, which is noticed even while nothing waits."""
        forwarding = asyncio.create_task(self._forward())
        listening = asyncio.create_task(self._listen())
        tasks = (forwarding, listening)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        async for message in self._client.messages:
            log.debug("device %s: %s is not heard", self.id, message.topic)

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        await self._client.publish(f"v1/devices/{self.id}/telemetry", reading.body(), qos=1)
        self._acknowledge(reading)


def _connack_code(error: MqttConnectError) -> int | None:
    """Return the code of MQTT 3.1.1; paho translates it to that of MQTT 5."""
    rc = error.rc
    code = rc if isinstance(rc, int) or rc is None else int(rc.value)
    return {133: 2, 134: 4, 135: 5}.get(code, code) if code is not None else None


class _Receipt(msgspec.Struct):
    """How the platform answers a reading: how many of its values it took."""

    accepted: int
    rejected: int | list[msgspec.Raw] = 0


@dataclass
class HttpDevice(Device):
    """Posts to `/api/v1/telemetry` with its token; a reading is acknowledged by 202."""

    url: str = "http://127.0.0.1:8000"
    window: int = 4
    timeout: float = 20.0

    async def _session(self) -> None:
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        async with httpx2.AsyncClient(
            base_url=self.url, headers=headers, timeout=self.timeout, trust_env=False
        ) as self._client:
            await self._forward()

    async def _deliver(self, reading: Reading) -> None:
        self.stats.sent += 1
        try:
            response = await self._client.post("/api/v1/telemetry", content=reading.body())
        except httpx2.TransportError as error:
            raise ConnectionFailed(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in (401, 403):
            raise CredentialRefused(f"HTTP {response.status_code}")
        if response.status_code in (400, 413, 415, 422):
            self._connected()
            self._reject(reading, f"HTTP {response.status_code} {response.text[:200]}")
        elif response.status_code == 202:
            self._connected()
            receipt = msgspec.json.decode(response.content, type=_Receipt)
            if receipt.accepted or not receipt.rejected:
                self._acknowledge(reading)
            else:
                self._reject(reading, response.text[:200])
        else:
            wait = response.headers.get("retry-after", "")
            raise ConnectionFailed(
                f"HTTP {response.status_code}", float(wait) if wait.isdecimal() else 0.0
            )
