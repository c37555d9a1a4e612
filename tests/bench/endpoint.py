"""The MQTT endpoint alone: how many QoS 1 messages a second one core takes and acknowledges.

The endpoint runs in this process with its own decoding and batching; the bus behind it is at once
durable, so that what is measured is the endpoint. Devices are in a process of their own, as the whole
platform's bench has them. Each sends segments of as many messages as it may have unacknowledged.
`cpu_us_per_message` is what this process spent, whatever the machine had to share out besides;
`messages_per_core_s` is its inverse: what one core takes when it has nothing else to do. With
`--idle` the connections say nothing, and the memory that each takes is measured.
"""

import argparse
import asyncio
import gc
import logging
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast
from uuid import uuid4

import psutil
import structlog
import uvloop

from libs.common.events.base import Message
from services.ingest.protocols.mqtt.admission import Capacity
from services.ingest.protocols.mqtt.asides import Desk
from services.ingest.protocols.mqtt.endpoint import Endpoint
from services.ingest.protocols.mqtt.limits import Limits
from services.ingest.usecases.reception import Reception
from tests.bench.reception import Silent, open_reception
from tests.bench.report import print_report, say

METRICS = ("temperature", "pressure", "flow")


async def _at_once(messages: Sequence[Message]) -> None:
    await asyncio.sleep(0)


def make_endpoint() -> tuple[Endpoint, Reception]:
    """Put an endpoint together whose bus is at once durable."""
    reception, _ = open_reception(_at_once, METRICS)
    many = 100_000
    nothing = cast(Any, Silent())
    endpoint = Endpoint(
        reception,
        limits=Limits(messages_per_second=1e9, burst=1e9),
        capacity=Capacity(many, many, many),
        keeper=nothing,
        desk=Desk(reception, nothing, many, 262_144),
    )
    return endpoint, reception


class _Device(asyncio.Protocol):
    """Sends a segment of messages, and the next one when all of it is acknowledged."""

    transport: asyncio.Transport

    def __init__(self, level: int, segment: int) -> None:
        device = str(uuid4()).encode()
        topic = b"v1/devices/" + device + b"/telemetry"
        self.connected = asyncio.get_running_loop().create_future()
        self._is_in = False
        self.acknowledged = 0
        self._size = 4 * segment
        self._left = 0
        none = b"" if level == 4 else b"\0"
        self._hello = _packet(
            0x10,
            b"\0\x04MQTT" + bytes([level]) + b"\xc2\x02\x58" + none + _field(device) * 3,
        )
        body = b'{"ts":%d,"values":{"temperature":100.5,"pressure":200.5,"flow":300.5}}'
        payload = body % int(time.time() * 1000)
        messages = []
        for number in range(1, segment + 1):
            head, about = _field(topic), none
            if level == 5:
                # The topic once, then its alias.
                head, about = (head if number == 1 else b"\0\0"), b"\x03\x23\x00\x01"
            messages.append(_packet(0x32, head + number.to_bytes(2) + about + payload))
        self.segment = b"".join(messages)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if not self._is_in:
            self._is_in = True
            self.connected.set_result(None)
            return
        self._left -= len(data)
        self.acknowledged += len(data) // 4
        if self._left <= 0:
            self.send()

    def send(self) -> None:
        """Send the segment once more."""
        self._left += self._size
        self.transport.write(self.segment)


def _field(content: bytes) -> bytes:
    return len(content).to_bytes(2) + content


def _packet(first: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([first]) + length + body


def _devices(pipe: Pipe, port: int, count: int, level: int, segment: int) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()
        devices = [_Device(level, segment) for _ in range(count)]
        for start in range(0, count, 100):
            some = devices[start : start + 100]
            await asyncio.gather(
                *(loop.create_connection(lambda d=d: d, "127.0.0.1", port) for d in some)  # type: ignore[misc]  # bound at once
            )
            await asyncio.gather(*(device.connected for device in some))
        pipe.send("connected")
        while True:
            if await asyncio.to_thread(pipe.recv) == "send":
                for device in devices:
                    device.send()
            else:
                pipe.send(sum(device.acknowledged for device in devices))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live())


async def _acknowledged(devices: Pipe) -> int:
    """Return how many messages the devices have been acknowledged."""
    devices.send("count")
    count: int = await asyncio.to_thread(devices.recv)
    return count


async def measure(options: argparse.Namespace) -> dict[str, float | int | None]:
    """Run it once; return the figures."""
    endpoint, reception = make_endpoint()
    reception.intake.start()
    reception.start()
    port = await endpoint.listen("127.0.0.1", 0)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    devices = context.Process(
        target=_devices,
        args=(theirs, port, options.connections, options.level, options.segment),
        daemon=True,
    )
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    devices.start()
    theirs.close()
    try:
        await asyncio.to_thread(ours.recv)
        gc.collect()
        kilobytes = (process.memory_info().rss - before) / options.connections / 1000
        say(f"{options.connections} connections, {kilobytes:.1f} kB each")
        figures: dict[str, float | int | None] = {
            "connections": options.connections,
            "level": options.level,
            "memory_kb_per_connection": round(kilobytes, 1),
        }
        if options.idle:
            return figures
        ours.send("send")
        await asyncio.sleep(2.0)
        acknowledged = await _acknowledged(ours)
        began, cpu = time.monotonic(), _cpu_s()
        await asyncio.sleep(options.seconds)
        messages = await _acknowledged(ours) - acknowledged
        elapsed, spent = time.monotonic() - began, _cpu_s() - cpu
        figures |= {
            "segment_messages": options.segment,
            "messages_per_s": round(messages / elapsed),
            "cpu_us_per_message": round(spent / messages * 1e6, 2),
            "messages_per_core_s": round(messages / spent),
            "cores_used": round(spent / elapsed, 2),
        }
        return figures
    finally:
        devices.terminate()
        devices.join()
        await endpoint.stop()
        await reception.stop()
        await reception.intake.stop()


def _cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


def main() -> None:
    """Run the bench as asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--segment", type=int, default=20, help="messages in a segment")
    parser.add_argument("--level", type=int, choices=(4, 5), default=4)
    parser.add_argument("--idle", action="store_true", help="measure memory, send nothing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(options))
    print_report(figures, mode="endpoint", as_json=options.json)


if __name__ == "__main__":
    main()
