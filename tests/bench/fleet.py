"""A fleet of devices of every protocol, in many tenants, for minutes: is anything lost, does memory grow?

The devices are the simulator's, in processes of their own. First so many connect by MQTT and say nothing,
which shows what an idle connection costs. Then the fleet comes in, a few devices at once; each sends from
then on, a message of three metrics at a time. Time counts from when all are in. At the end what was
acknowledged is compared with what is stored, one by one. Exits with 1 if anything is lost, was never sent
or is there twice, if an idle connection costs too much, or if a burst did not drain.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import psutil

from clients.simulator.protocols import PORTS, PROTOCOLS, Doors
from clients.simulator.site import shared_out
from deploy.local.processes import LOOPBACK
from services.ingest.domain.token import hash_token, new_token
from tests.bench.meter import MemoryWatch, Spent, growth_mb_per_h, spent
from tests.bench.report import Figure, print_report, say
from tests.bench.stack import PROCESSES, ClusterStack
from tests.fleet.doors import free_doors, settings_of
from tests.fleet.fleet import Comparison, Ledger, Member

SHARES = {
    "mqtt": 53,
    "mqtt5": 20,
    "coap": 14,
    "http": 10,
    "mqtt-websocket": 1,
    "amqp": 1,
    "opcua": 1,
}
"""What of the fleet speaks what, in percent, unless it is told otherwise."""
TENANTS = 100
PAUSE_S = 30.0
RECONNECT_S = 30.0
"""The longest pause of a device that comes anew: shorter ones add to what lost it its connection."""
IDLE_BYTES = 15_000
"""What an idle connection may cost."""
STORED_S = 120.0
BURST_S = 60.0
TOLD_EVERY_S = 10.0
MOST_WAITING = 10_000
"""Messages that a device keeps before it measures no more: none is left out in a burst."""
LONGEST_LINE = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for."""

    devices: int = 10_000
    tenants: int = TENANTS
    seconds: float = 300.0
    pause_s: float = PAUSE_S
    """Between two messages of a device."""
    workers: int = 2
    idle: int = 10_000
    """Connections that say nothing, for their memory; 0 leaves that out."""
    burst: float = 0.0
    """How many times faster all devices send for BURST_S, in the middle; 0: never."""
    shares: Mapping[str, float]

    @property
    def stretches(self) -> tuple[tuple[float, float], ...]:
        """Seconds, and how many times faster than usual: before the burst, in it, after it."""
        burst_s = min(BURST_S, self.seconds / 3) if self.burst else 0.0
        calm_s = (self.seconds - burst_s) / 2
        return (calm_s, 1.0), (burst_s, self.burst or 1.0), (calm_s, 1.0)


@dataclass(frozen=True, slots=True)
class Registered:
    """A device, past the API: what is measured is not registration."""

    tenant_id: UUID
    device_id: UUID
    token: str


async def register(database: asyncpg.Connection, devices: int, tenants: int) -> list[Registered]:
    """Put devices of so many tenants into the database."""
    now = datetime.now(UTC)
    tenant_ids = [uuid4() for _ in range(tenants)]
    made = [Registered(tenant_ids[n % tenants], uuid4(), new_token()) for n in range(devices)]
    async with database.transaction():
        for tenant_id in tenant_ids:
            await database.fetchval("SELECT historian.tenant_number($1)", tenant_id)
        await database.execute(
            "INSERT INTO ingest.policies (tenant_id, plain_coap, changed_at)"
            " SELECT unnest($1::uuid[]), true, now()",
            tenant_ids,
        )
        await database.copy_records_to_table(
            "devices",
            schema_name="ingest",
            columns=["tenant_id", "id", "name", "type", "created_at", "updated_at"],
            records=[
                (d.tenant_id, d.device_id, f"d {d.device_id}", "pump", now, now) for d in made
            ],
        )
        await database.execute(
            "INSERT INTO ingest.credentials (tenant_id, device_id, token_hash, created_at)"
            " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::timestamptz[])",
            [d.tenant_id for d in made],
            [d.device_id for d in made],
            [hash_token(d.token) for d in made],
            [now] * len(made),
        )
    return made


async def idle_bytes(stack: ClusterStack, devices: Sequence[Registered]) -> float:
    """Return what a connection that says nothing adds to the endpoint's own memory, in bytes."""
    endpoint = psutil.Process(stack.pids()["ingest"])
    before = endpoint.memory_full_info().uss
    writers: list[asyncio.StreamWriter] = []

    async def connect(device: Registered) -> None:
        reader, writer = await asyncio.open_connection(LOOPBACK, stack.mqtt_port)
        name = str(device.device_id).encode()
        fields = b"".join(
            len(field).to_bytes(2, "big") + field for field in (name, name, device.token.encode())
        )
        body = b"\x00\x04MQTT\x04\xc2\x00\x00" + fields
        head = bytes([0x10]) + _remaining(len(body))
        writer.write(head + body)
        answer = await asyncio.wait_for(reader.readexactly(4), 60)
        if answer[3] != 0:
            raise RuntimeError(f"CONNACK {answer[3]}")
        writers.append(writer)

    for start in range(0, len(devices), 200):
        await asyncio.gather(*(connect(device) for device in devices[start : start + 200]))
    held = endpoint.memory_full_info().uss - before
    for writer in writers:
        writer.transport.abort()
    return held / len(devices)


def _remaining(length: int) -> bytes:
    encoded = bytearray()
    while True:
        length, digit = divmod(length, 128)
        encoded.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(encoded)


@dataclass(frozen=True, slots=True)
class Moment:
    """How far all was at a moment."""

    stack: Spent
    clients_cpu_s: float
    points: int
    """Acknowledged until then."""


@dataclass(slots=True)
class Driven:
    """What the fleet did."""

    ledger: Ledger
    all_in: Moment | None = None
    settled: Moment | None = None
    """When all that was measured was acknowledged; the devices leave after it."""
    reconnects: int = 0
    connected_s: float = 0.0
    """From the first look to the last device that came in."""
    most_waiting: int = 0
    """Messages that were measured and not acknowledged, at the worst moment."""
    drained_s: float | None = None
    """From the end of the burst until no more waited than before it; None without a burst, or if never."""


class Watch:
    """Puts together what the processes say once a second, and tells it."""

    def __init__(self, options: Options, driven: Driven, pids: Mapping[str, int]) -> None:
        self.all_in = asyncio.Event()
        self._options = options
        self._driven = driven
        self._pids = pids
        self._said: dict[int, dict[str, float]] = {}
        self._began = self._told = time.monotonic()
        self._before = 0.0

    def note(self, worker: int, said: dict[str, float]) -> None:
        """Note how one of the processes does."""
        self._said[worker] = said
        now = time.monotonic()
        total = {key: sum(one[key] for one in self._said.values()) for key in said}
        driven = self._driven
        driven.reconnects = round(total["reconnects"])
        driven.most_waiting = max(driven.most_waiting, round(total["waiting"]))
        if driven.all_in is None:
            if total["entered"] == self._options.devices:
                driven.connected_s = now - self._began
                driven.all_in = self._moment(total)
                self.all_in.set()
                say(f"all are in after {driven.connected_s:.0f} s; time counts from now")
        elif driven.settled is None:
            if total["settled"] == self._options.workers:
                driven.settled = self._moment(total)
            self._look_at_burst(now - self._began - driven.connected_s, total["waiting"])
        if now - self._told >= TOLD_EVERY_S:
            self._told = now
            say(
                f"{now - self._began:4.0f} s: {total['entered']:.0f} of {self._options.devices} in, "
                f"{total['connected']:.0f} connected now, {total['points']:.0f} points acknowledged, "
                f"{total['waiting']:.0f} messages waiting"
            )

    def _moment(self, total: Mapping[str, float]) -> Moment:
        return Moment(spent(self._pids), total["cpu_s"], round(total["points"]))

    def _look_at_burst(self, at: float, waiting: float) -> None:
        calm, burst, _ = self._options.stretches
        if not burst[0]:
            return
        if at < calm[0]:
            self._before = max(self._before, waiting)
        elif at > calm[0] + burst[0] and waiting <= self._before:
            self._driven.drained_s = self._driven.drained_s or at - calm[0] - burst[0]


async def drive(
    options: Options, doors: Doors, devices: Sequence[Registered], pids: Mapping[str, int]
) -> Driven:
    """Let the fleet work in processes of its own."""
    members = [
        Member(protocol, device.device_id, device.token)
        for device, protocol in zip(devices, spoken(devices, options), strict=True)
    ]
    driven = Driven(Ledger(members))
    watch = Watch(options, driven, pids)
    async with asyncio.TaskGroup() as group:
        for worker in range(options.workers):
            part = members[worker :: options.workers]
            group.create_task(_work(worker, options, doors, part, driven.ledger, watch))
    return driven


def spoken(devices: Sequence[Registered], options: Options) -> list[str]:
    """Return each device's protocol."""
    names = [str(device.device_id) for device in devices]
    return list(shared_out(names, options.shares).values())


async def _work(
    worker: int,
    options: Options,
    doors: Doors,
    members: Sequence[Member],
    ledger: Ledger,
    watch: Watch,
) -> None:
    told = {
        "members": [(m.protocol, str(m.device_id), m.token) for m in members],
        "url": doors.url,
        "doors": {name: doors.address(name) for name in PORTS},
        "pause_s": options.pause_s,
        "reconnect_s": RECONNECT_S,
        "most_waiting": MOST_WAITING,
        "stretches": options.stretches,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.fleet.afar"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        async for line in process.stdout:
            if watch.all_in.is_set() and not process.stdin.is_closing():
                process.stdin.write(b"all are in\n")
                process.stdin.close()
            said = json.loads(line)
            if "device" in said:
                entry = ledger.entries[UUID(said["device"])]
                entry.sent.extend(said["sent"])
                entry.acknowledged.extend(said["acknowledged"])
            else:
                watch.note(worker, said)
        await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"a worker ended with {process.returncode}: see its output above")


async def measure(stack: ClusterStack, options: Options, doors: Doors) -> dict[str, Figure]:
    """Run both parts and return the figures."""
    database = await asyncpg.connect(stack.admin_url)
    try:
        devices = await register(database, max(options.devices, options.idle), options.tenants)
        await database.execute("ANALYZE ingest.devices, ingest.credentials")
        idle = None
        if options.idle:
            say(f"{options.idle} devices connect by MQTT and say nothing")
            idle = round(await idle_bytes(stack, devices[: options.idle]))
        fleet = devices[: options.devices]
        say(f"{len(fleet)} devices of {options.tenants} tenants work for {options.seconds:.0f} s")
        with MemoryWatch(stack.pids) as memory:
            driven = await drive(options, doors, fleet, stack.pids())
            say("everything that was measured is acknowledged; is it stored?")
            found = await driven.ledger.compare(stack.admin_url, within_s=STORED_S)
        quarantined: int = await database.fetchval("SELECT count(*) FROM ingest.quarantine")
    finally:
        await database.close()
    assert driven.all_in is not None
    assert driven.settled is not None
    cost = driven.settled.stack - driven.all_in.stack
    points = driven.settled.points - driven.all_in.points
    clients_cpu_s = driven.settled.clients_cpu_s - driven.all_in.clients_cpu_s
    other_s = cost.machine_s - cost.total_s - clients_cpu_s
    total = sum(found.values(), Comparison())
    # The beginning is left out: tables and pools fill while the devices come in.
    held = memory.between(driven.all_in.stack.elapsed_s, driven.settled.stack.elapsed_s)
    return {
        "devices": options.devices,
        "tenants": options.tenants,
        "protocols": dict(Counter(spoken(fleet, options))),
        "pause_s": options.pause_s,
        "connected_s": round(driven.connected_s, 1),
        "seconds": round(cost.elapsed_s, 1),
        "points_per_s": round(points / cost.elapsed_s),
        "offered": driven.ledger.sent,
        "acknowledged": total.acknowledged,
        "lost": total.lost,
        "never_sent": total.strange,
        "duplicated": total.twice,
        "quarantined": quarantined,
        "reconnects": driven.reconnects,
        "most_waiting_messages": driven.most_waiting,
        "burst_drained_s": None if driven.drained_s is None else round(driven.drained_s, 1),
        "cpu_s_per_million_points": round(cost.total_s / max(1, points) * 1e6, 1),
        "clients_cpu_s_per_million_points": round(clients_cpu_s / max(1, points) * 1e6, 1),
        "other_cpu_percent": round(100 * other_s / cost.elapsed_s / (os.cpu_count() or 1), 1),
        "memory_mb_at_begin": _rounded(held[0].own_mb),
        "memory_mb_at_end": _rounded(held[-1].own_mb),
        "memory_growth_mb_per_h": growth_mb_per_h(held),
        "peak_rss_mb": round(memory.peak_rss_mb),
        "peak_pss_mb": round(memory.peak_pss_mb),
        "idle_mqtt_connection_bytes": idle,
    }


def _rounded(own_mb: Mapping[str, float]) -> dict[str, int]:
    return {name: round(size) for name, size in own_mb.items()}


def run(options: Options) -> dict[str, Figure]:
    """Start the platform privately, measure, and end it."""
    if unknown := options.shares.keys() - set(PROTOCOLS):
        raise SystemExit(
            f"no such protocol: {', '.join(unknown)}; there are {', '.join(PROTOCOLS)}"
        )
    ports = free_doors("mqtt", "amqp")
    env = settings_of(ports)
    # All come from one address, which a plant's devices do not.
    env |= {"INGEST_MQTT_STRANGERS_PER_ADDRESS": "4000"}
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as folder:
        stack = ClusterStack(Path(folder), PROCESSES, 4, env, amqp="amqp" in options.shares)
        say("starting the platform")
        try:
            stack.start()
            ports["mqtt"] = stack.mqtt_port
            if stack.amqp_port is not None:
                ports["amqp"] = stack.amqp_port
            doors = Doors(stack.url("ingest"), {n: (LOOPBACK, port) for n, port in ports.items()})
            return asyncio.run(measure(stack, options, doors))
        finally:
            stack.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench as a command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--tenants", type=int, default=TENANTS)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds between two messages")
    parser.add_argument("--workers", type=int, default=2, help="processes that the devices live in")
    parser.add_argument("--idle", type=int, default=10_000, help="connections that say nothing")
    parser.add_argument(
        "--burst",
        type=float,
        nargs="?",
        const=10.0,
        default=0.0,
        metavar="TIMES",
        help=f"so many times faster (10) for {BURST_S:.0f} s in the middle; it must drain",
    )
    parser.add_argument(
        "--share", action="append", metavar="PROTOCOL:SHARE", help="may be given several times"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    chosen = parser.parse_args(arguments)
    shares = {
        name: float(share or 1)
        for name, _, share in (text.partition(":") for text in chosen.share or ())
    }
    options = Options(
        devices=chosen.devices,
        tenants=chosen.tenants,
        seconds=chosen.seconds,
        pause_s=chosen.pause,
        workers=chosen.workers,
        idle=chosen.idle,
        burst=chosen.burst,
        shares=shares or SHARES,
    )
    figures = run(options)
    print_report(figures, mode="cluster", as_json=chosen.json)
    wrong = {name: figures[name] for name in ("lost", "never_sent", "duplicated") if figures[name]}
    idle = figures["idle_mqtt_connection_bytes"]
    if isinstance(idle, int) and idle > IDLE_BYTES:
        wrong["idle_mqtt_connection_bytes"] = idle
    if wrong:
        raise SystemExit(f"broken promises: {wrong}")
    if options.burst and figures["burst_drained_s"] is None:
        raise SystemExit("the burst did not drain")


if __name__ == "__main__":
    main()
