"""Devices that publish by MQTT 3.1.1 at a given rate, whatever the platform does (an open loop).

They live in a process of their own, so that what they cost can be told apart. Each device has a
real connection; each message is a QoS 1 PUBLISH of three metrics in a segment of its own, and its
`ts` is the time at which it was due. All latencies count from that due time: a generator or a
platform that falls behind makes them worse, never better.
"""

import asyncio
import itertools
import multiprocessing
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import numpy.typing as npt
import psutil
import uvloop

METRICS = ("temperature", "pressure", "flow")
ALARM_METRIC = METRICS[0]
ALARM_VALUE = 999.5
"""What no message holds but those that are to set off a rule."""

TICK_S = 0.001
CONNECTING_AT_ONCE = 100
CONNECT_S = 60.0
MOST_MESSAGES = 65_535
"""Of one device in a run: so each has a packet id of its own, which says which message it was."""

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of messages at an even rate, round the devices in turn."""

    first: int
    """The number of its first message; numbers go on from phase to phase."""
    count: int
    rate: float
    """Messages a second."""
    start: float
    """When the first is due, on the monotonic clock."""
    start_ms: float
    """The same moment in ms since 1970 UTC."""
    alarms: frozenset[int] = frozenset()
    """The numbers of the messages that hold ALARM_VALUE."""
    patience_s: float = 30.0
    """How long to wait for acknowledgements after the last message."""

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The numbers of its messages."""
        return np.arange(self.first, self.first + self.count)

    def due(self) -> Seconds:
        """Return when each message is due, on the monotonic clock."""
        return self.start + np.arange(self.count) / self.rate

    def due_ms(self) -> npt.NDArray[np.int64]:
        """Return the `ts` of each message."""
        return (self.start_ms + np.arange(self.count) * 1000.0 / self.rate).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Driven:
    """What became of a phase: times on the monotonic clock by message, 0 for "never"."""

    sent_at: Seconds
    acknowledged_at: Seconds
    connections_lost: int
    cpu_s: float


class Generator:
    """The process of some devices. All its methods block."""

    def __init__(self, port: int, devices: Sequence[tuple[str, str]]) -> None:
        """`devices`: their ids and tokens."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_live, args=(theirs, port, list(devices)), name="generator", daemon=True
        )
        self._process.start()
        theirs.close()

    def wait_connected(self) -> None:
        """Return when every device is connected; raises RuntimeError when one is not let in."""
        self._answer()

    def drive(self, phase: Phase) -> Driven:
        """Publish a phase's messages when they are due, and return when they are acknowledged."""
        self._pipe.send(phase)
        return cast(Driven, self._answer())

    def end(self) -> None:
        """Cut the connections and end the process."""
        self._process.terminate()
        self._process.join()

    def _answer(self) -> object:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("the load generator has died") from None
        if isinstance(answer, Exception):
            raise RuntimeError(str(answer)) from answer
        return answer


def _live(pipe: Connection, port: int, devices: list[tuple[str, str]]) -> None:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(pipe, port, devices))
    except (EOFError, KeyboardInterrupt):
        return  # the one who asks has gone
    except Exception as error:  # noqa: BLE001 - it is raised again by the one who asked
        pipe.send(RuntimeError(repr(error)))


async def _serve(pipe: Connection, port: int, devices: list[tuple[str, str]]) -> None:
    fleet = _Fleet(devices)
    await fleet.connect(port)
    pipe.send(None)
    while True:
        phase: Phase = await asyncio.to_thread(pipe.recv)
        pipe.send(await fleet.drive(phase))


class _Fleet:
    def __init__(self, devices: Sequence[tuple[str, str]]) -> None:
        self.devices = [_Device(self, n, *device) for n, device in enumerate(devices)]
        self.acknowledged_at = array("d")
        self.connections_lost = 0

    async def connect(self, port: int) -> None:
        slots = asyncio.Semaphore(CONNECTING_AT_ONCE)
        loop = asyncio.get_running_loop()

        async def one(device: _Device) -> None:
            async with slots:
                await loop.create_connection(lambda: device, "127.0.0.1", port)
                await device.welcome

        async with asyncio.timeout(CONNECT_S):
            await asyncio.gather(*map(one, self.devices))

    async def drive(self, phase: Phase) -> Driven:
        end = phase.first + phase.count
        if end > MOST_MESSAGES * len(self.devices):
            raise ValueError("too many messages for so few devices: take more, or less time")
        self.acknowledged_at.extend(array("d", bytes(8 * (end - len(self.acknowledged_at)))))
        cpu_before = _own_cpu_s()
        sent_at = await self._publish(phase)
        await self._wait_acknowledged(phase)
        return Driven(
            sent_at=np.array(sent_at),
            acknowledged_at=np.array(self.acknowledged_at[phase.first : end]),
            connections_lost=self.connections_lost,
            cpu_s=_own_cpu_s() - cpu_before,
        )

    async def _publish(self, phase: Phase) -> "array[float]":
        """Write the messages, each when it is due or as soon as may be after that."""
        devices = len(self.devices)
        writes: list[Callable[[bytes], None]] = [d.transport.write for d in self.devices]
        heads = [device.publish_head for device in self.devices]
        tails = _TAILS
        count, rate, start, alarms = phase.count, phase.rate, phase.start, phase.alarms
        ms_each, start_ms, first = 1000.0 / rate, phase.start_ms, phase.first
        sent_at = array("d", bytes(8 * count))
        sent = 0
        await asyncio.sleep(max(0.0, start - time.monotonic()))
        while sent < count:
            now = time.monotonic()
            for n in range(sent, min(count, int((now - start) * rate) + 1)):
                turn, device = divmod(first + n, devices)
                tail = tails[turn & 15] if first + n not in alarms else _ALARM_TAIL
                writes[device](
                    b'%b%b{"ts":%d,%b'
                    % (heads[device], (turn + 1).to_bytes(2), int(start_ms + n * ms_each), tail)
                )
                sent_at[n] = now
                sent = n + 1
            await asyncio.sleep(TICK_S)
        return sent_at

    async def _wait_acknowledged(self, phase: Phase) -> None:
        deadline = time.monotonic() + phase.patience_s
        while time.monotonic() < deadline and not self.connections_lost:
            waiting = self.acknowledged_at[phase.first : phase.first + phase.count].count(0.0)
            if not waiting:
                return
            await asyncio.sleep(0.05)


class _Device(asyncio.Protocol):
    """A device's connection. All that it is answered has four bytes: CONNACK and PUBACK."""

    transport: asyncio.Transport

    def __init__(self, fleet: _Fleet, number: int, device_id: str, token: str) -> None:
        self._fleet = fleet
        self._number = number
        self._connect = _connect_packet(device_id, token)
        self._rest = b""
        self.publish_head = _publish_head(f"v1/devices/{device_id}/telemetry")
        self.welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports keep asyncio's promise without deriving from its class.
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._connect)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._rest:
            data = self._rest + data
        fleet = self._fleet
        times, devices, number = fleet.acknowledged_at, len(fleet.devices), self._number
        whole = len(data) & ~3
        for at in range(0, whole, 4):
            if data[at] == 0x40:
                turn = (data[at + 2] << 8 | data[at + 3]) - 1
                times[turn * devices + number] = now
            elif data[at] == 0x20 and data[at + 3] == 0:
                self.welcome.set_result(None)
            else:
                self.welcome.set_exception(RuntimeError(f"answered by {data[at : at + 4]!r}"))
        self._rest = data[whole:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fleet.connections_lost += 1
        if not self.welcome.done():
            self.welcome.set_exception(RuntimeError("the platform closed a connection"))


def _connect_packet(device_id: str, token: str) -> bytes:
    fields = b"".join(_field(text.encode()) for text in (device_id, device_id, token))
    # Clean session, user name, password; a keep-alive of ten minutes.
    return _packet(0x10, _field(b"MQTT") + b"\x04\xc2" + (600).to_bytes(2) + fields)


def _publish_head(topic: str) -> bytes:
    """Return a QoS 1 PUBLISH up to its packet id; what follows always has the same length."""
    body = _field(topic.encode()) + bytes(2) + b'{"ts":1700000000000,' + _TAILS[0]
    whole = _packet(0x32, body)
    return whole[: len(whole) - len(body)] + _field(topic.encode())


def _packet(first: int, body: bytes) -> bytes:
    length = len(body)
    assert length < 2**14
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([first]) + size + body


def _field(content: bytes) -> bytes:
    return len(content).to_bytes(2) + content


def _tail(values: Sequence[float]) -> bytes:
    members = ",".join(f'"{m}":{v:.1f}' for m, v in zip(METRICS, values, strict=True))
    return f'"values":{{{members}}}}}'.encode()


_TAILS = [_tail((100.5 + n, 200.5 + 2 * n, 300.5 + 3 * n)) for n in range(16)]
_ALARM_TAIL = _tail((ALARM_VALUE, 200.5, 300.5))
assert len({len(tail) for tail in itertools.chain(_TAILS, [_ALARM_TAIL])}) == 1


def _own_cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system
