"""Telemetry by CoAP: how many confirmable messages a second are accepted and durable, at what cost.

The bench starts ingest privately (an endpoint, a writer, PostgreSQL, RabbitMQ). Devices in a process of
their own, each with a socket of its own, post three metrics with a `ts`, and post the next message when
the one before was answered with 2.04 (so NSTART is 1, as RFC 7252 asks); what is not answered they send
again, as that RFC asks too. A 2.04 means that the message is durable on the bus. At the end the messages
that were answered are compared with those that are stored.

With `--strangers N` a stranger in another process sends so many datagrams a second beside them: noise,
questions without a credential, wrong tokens, identities of nobody. `ack_p99_ms` then says what the
devices feel of it.

`messages_per_core_s` is what one core of the endpoint takes: messages by the processor time that its
process spent, from the kernel's way of the datagrams to the publishing. `messages_per_s` is what it took
on this machine, beside the generator, the broker and the database.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import socket
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from uuid import uuid4

import asyncpg
import numpy as np
import numpy.typing as npt
import psutil
import uvloop
from aiocoap import Message
from aiocoap.numbers import Code

from deploy.local.cluster import INGEST, INGEST_WRITER, Cluster
from deploy.local.processes import LOOPBACK
from tests.bench.generator import METRICS
from tests.bench.meter import spent
from tests.bench.plant import build_plant
from tests.bench.report import Figure, percentile_ms, print_report, say

ACK_TIMEOUT_S = 2.0
MAX_RETRANSMIT = 4
STORED_WITHIN_S = 60.0
WARM_UP_S = 2.0
STRANGERS_ADDRESS = "127.0.0.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for."""

    devices: int
    seconds: float
    strangers_per_s: int = 0


@dataclass(slots=True)
class Driven:
    """What the devices sent, and how it was answered."""

    answered: list[tuple[int, int]] = field(default_factory=list)
    """Device and `ts` in ms of each message that was answered with 2.04."""
    took_s: list[float] = field(default_factory=list)
    refused: int = 0
    given_up: int = 0
    retransmitted: int = 0
    cpu_s: float = 0.0
    lasted_s: float = 0.0


class Device(asyncio.DatagramProtocol):
    """A device that posts as fast as it is answered."""

    def __init__(self, number: int, token: str, driven: Driven, began_ms: int) -> None:
        self._number = number
        post = Message(code=Code.POST, uri_path=("v1", token, "telemetry"), content_format=50)
        post.mtype, post.mid, post.token = 0, 0, b"\x01"
        self._options: bytes = post.encode()[5:]
        self._driven = driven
        self._mid = random.randrange(65_536)
        self._ts = began_ms
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._datagram = b""
        self._sent_at = 0.0
        self._attempts = 0
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[2:4] != self._datagram[2:4] or self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        if data[1] == Code.CHANGED:
            self._driven.answered.append((self._number, self._ts))
            self._driven.took_s.append(time.monotonic() - self._sent_at)
            self.post()
        else:
            self._driven.refused += 1
            self._loop.call_later(1.0, self.post)

    def post(self) -> None:
        if self.is_over:
            return
        self._ts += 1
        self._mid = (self._mid + 1) & 0xFFFF
        values = f'"{METRICS[0]}":21.5,"{METRICS[1]}":1.013,"{METRICS[2]}":{self._mid}'
        body = f'{{"ts":{self._ts},"values":{{{values}}}}}'.encode()
        head = b"\x41\x02" + self._mid.to_bytes(2, "big") + b"\x01"
        self._datagram = head + self._options + b"\xff" + body
        self._sent_at = time.monotonic()
        self._attempts = 0
        self._send(ACK_TIMEOUT_S * random.uniform(1, 1.5))

    def _send(self, timeout_s: float) -> None:
        self._transport.sendto(self._datagram)  # type: ignore[attr-defined]  # uvloop's own class
        self._timer = self._loop.call_later(timeout_s, self._again, timeout_s)

    def _again(self, timeout_s: float) -> None:
        self._attempts += 1
        if self._attempts > MAX_RETRANSMIT:
            self._driven.given_up += 1
            self._timer = None
            self.post()
            return
        self._driven.retransmitted += 1
        self._send(2 * timeout_s)

    def end(self) -> None:
        self.is_over = True


def generate(pipe: Connection, port: int, tokens: list[str], began_ms: int) -> None:
    """Be the devices: drive for as many seconds as come through the pipe, and tell what happened."""

    async def drive() -> None:
        driven = Driven()
        loop = asyncio.get_running_loop()
        devices = []
        for number, token in enumerate(tokens):
            device = Device(number, token, driven, began_ms)
            await loop.create_datagram_endpoint(
                lambda device=device: device,  # type: ignore[misc]  # bound now
                remote_addr=(LOOPBACK, port),
            )
            devices.append(device)
        pipe.send("ready")
        seconds = await asyncio.to_thread(pipe.recv)
        cpu, began = time.process_time(), time.monotonic()
        for device in devices:
            device.post()
        await asyncio.sleep(seconds)
        driven.lasted_s, driven.cpu_s = time.monotonic() - began, time.process_time() - cpu
        for device in devices:
            device.end()
        pipe.send(len(driven.took_s))  # the rest was answered after the measured time
        await asyncio.sleep(WARM_UP_S)
        pipe.send(driven)

    uvloop.run(drive())


def disturb(port: int, per_s: int) -> None:
    """Be a stranger, for ever."""
    noise = random.Random(7)
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.bind((STRANGERS_ADDRESS, 0))
    own.setblocking(False)
    began, count = time.monotonic(), 0
    while True:
        if count > (time.monotonic() - began) * per_s:
            time.sleep(0.001)
            continue
        with contextlib.suppress(OSError):  # its own buffer is full
            own.sendto(_strange(noise, count), (LOOPBACK, port))
        count += 1


def _strange(noise: random.Random, count: int) -> bytes:
    kind = count % 4
    if kind == 0:
        return noise.randbytes(40)
    strange = Message(code=Code.GET, uri_path=(".well-known", "core"))
    if kind == 1:
        token = f"iiotd_{noise.getrandbits(256):043x}"[:49]
        strange = Message(code=Code.POST, uri_path=("v1", token, "telemetry"), payload=b"{}")
    elif kind == 2:
        strange = Message(
            code=Code.POST, oscore=b"\x09\x01" + noise.randbytes(7), payload=b"x" * 20
        )
    strange.mtype, strange.mid, strange.token = 0, count & 0xFFFF, b""
    encoded: bytes = strange.encode()
    return encoded


async def stored_of(database: asyncpg.Connection, tenant: int) -> int:
    """Return how many messages of the tenant are stored whole."""
    found: int = await database.fetchval(
        "SELECT count(*) FROM (SELECT s.device_id, p.ts FROM historian.points p"
        " JOIN historian.series s ON s.tenant = p.tenant AND s.id = p.series"
        " WHERE p.tenant = $1 GROUP BY 1, 2 HAVING count(*) = $2) AS whole",
        tenant,
        len(METRICS),
    )
    return found


async def measure(cluster: Cluster, options: Options) -> dict[str, Figure]:
    """Drive the devices; return the figures."""
    database = await asyncpg.connect(cluster.admin_url)
    tenant_id = uuid4()
    began_ms = int(time.time() * 1000) - 3_600_000
    plant = await build_plant(database, tenant_id, options.devices, rules=0, began_ms=began_ms)
    await database.execute(
        "INSERT INTO ingest.policies (tenant_id, plain_coap, changed_at) VALUES ($1, true, now())",
        tenant_id,
    )
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    generator = context.Process(
        target=generate, args=(theirs, cluster.coap_port, plant.tokens, began_ms), daemon=True
    )
    generator.start()
    stranger = context.Process(
        target=disturb, args=(cluster.coap_port, options.strangers_per_s), daemon=True
    )
    if options.strangers_per_s:
        stranger.start()
    try:
        await asyncio.to_thread(ours.recv)
        pids = {"ingest": cluster.pid("ingest"), "ingest-writer": cluster.pid("ingest-writer")}
        say(f"{options.devices} devices post for {options.seconds} s")
        before = spent(pids)
        ours.send(options.seconds)
        in_time: int = await asyncio.to_thread(ours.recv)
        cost = spent(pids) - before
        driven: Driven = await asyncio.to_thread(ours.recv)
    finally:
        generator.terminate()
        if options.strangers_per_s:
            stranger.terminate()
    answered = len(set(driven.answered))
    stored = 0
    deadline = time.monotonic() + STORED_WITHIN_S
    while stored < answered and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
        stored = await stored_of(database, plant.tenant)
    await database.close()
    took: npt.NDArray[np.float64] = np.array(driven.took_s[:in_time])
    endpoint_s = cost.by_process["ingest"]
    return {
        "messages_per_s": round(in_time / driven.lasted_s),
        "messages_per_core_s": round(in_time / endpoint_s),
        "endpoint_cpu_us_per_message": round(endpoint_s / in_time * 1e6, 1),
        "points_per_message": len(METRICS),
        "devices": options.devices,
        "strangers_per_s": options.strangers_per_s,
        "ack_p50_ms": percentile_ms(took, 50),
        "ack_p99_ms": percentile_ms(took, 99),
        "answered": answered,
        "lost": max(0, answered - stored),
        "refused": driven.refused,
        "given_up": driven.given_up,
        "retransmitted": driven.retransmitted,
        "endpoint_rss_mb": round(psutil.Process(cluster.pid("ingest")).memory_info().rss / 2**20),
        "generator_cpu_percent": round(100 * driven.cpu_s / driven.lasted_s),
        "machine_busy_percent": round(
            100 * cost.machine_s / cost.elapsed_s / (psutil.cpu_count() or 1)
        ),
    }


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.coap", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument(
        "--strangers", type=int, default=0, help="datagrams a second of a stranger beside them"
    )
    parser.add_argument("--seconds", type=float, default=15.0)
    chosen = parser.parse_args()
    options = Options(
        devices=chosen.devices, seconds=chosen.seconds, strangers_per_s=chosen.strangers
    )
    with tempfile.TemporaryDirectory(prefix="iiot-coap-") as folder:
        cluster = Cluster(
            Path(folder),
            members=[INGEST, INGEST_WRITER],
            env={"LOG_LEVEL": "warning"},
        )
        try:
            say("starting ingest, PostgreSQL and RabbitMQ")
            cluster.start()
            figures = asyncio.run(measure(cluster, options))
        finally:
            cluster.stop()
    print_report(figures, mode="cluster", as_json=chosen.json)


if __name__ == "__main__":
    main()
