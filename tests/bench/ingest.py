"""Telemetry by MQTT: how many points a second, at what cost, how soon they are seen, what is lost.

The bench starts the platform privately, connects devices to it, and drives it in two phases.
First at the full rate: points per second and processor time per million points, from the first
message until the last is stored. Then at half of the rate that was reached: the latencies, from
the moment a message was due at the device to

- its PUBACK at the device (`ack`, every message);
- its committed row (`stored`, 16 devices): their newest points are asked for by primary key in
  PostgreSQL about every 5 ms, so a figure is up to that much too high;
- the alert that it sets off (`alert`, one message for each rule): the alert's committed row, or
  without alerting the committed firing of its rule, asked for in the same way;
- the frame that shows it (`ws`, every message of the same 16 devices): a user who has logged in at
  the gateway holds a WebSocket open through both phases, subscribed to these devices, and the
  first frame with the message's points has arrived.

At the end the points that were acknowledged are compared with those that are stored, one by one.

The mode is `cluster` (a process a service, RabbitMQ, Redis, PostgreSQL) or `edge` (all services in
one process, and PostgreSQL). What the load generator and the bench itself spend is not counted as the platform's.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import numpy.typing as npt

from tests.bench.console import Console
from tests.bench.generator import METRICS, Driven, Generator, Phase
from tests.bench.meter import MemoryWatch, Spent, growth_mb_per_h, spent
from tests.bench.plant import (
    Plant,
    PointKeys,
    build_plant,
    has_points,
    is_all_told,
    quarantined,
    stored_keys,
)
from tests.bench.probes import AlertProbe, StoredProbe, polling
from tests.bench.report import Figure, percentile_ms, print_report, say
from tests.bench.stack import (
    ADMIN_EMAIL,
    ADMIN_PASSWORD,
    MODES,
    PROCESSES,
    Stack,
    default_shards,
    make_stack,
)

PROBES = 16
LEAD_S = 0.3
WARM_UP_S = 2.0
DRAIN_S = 60.0
KEPT_UP_S = 1.0
"""A platform that has stored the last point so soon after it was due could have gone on for ever."""
PRESENCE_S = 120.0
LATECOMERS_S = 5.0
TELL_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is asked for. Rates are points a second."""

    mode: str = "cluster"
    seconds: float = 20.0
    latency_seconds: float = 10.0
    rate: float = 40_000.0
    connections: int = 2_000
    rules: int = 50
    generators: int = 1
    shards: int = field(default_factory=default_shards)
    processes: tuple[str, ...] = PROCESSES


@dataclass(slots=True)
class Ledger:
    """The points of all phases."""

    sent: list[PointKeys] = field(default_factory=list)
    acknowledged: list[PointKeys] = field(default_factory=list)


@dataclass(slots=True)
class Round:
    """A phase as all generators drove it."""

    phases: list[Phase]
    driven: list[Driven]

    @property
    def ended(self) -> float:
        """When the last message was due."""
        return max(phase.start + phase.count / phase.rate for phase in self.phases)

    @property
    def cpu_s(self) -> float:
        return sum(driven.cpu_s for driven in self.driven)

    @property
    def unacknowledged(self) -> int:
        """How many messages have no PUBACK."""
        return sum(int(np.count_nonzero(d.acknowledged_at == 0)) for d in self.driven)

    @property
    def connections_lost(self) -> int:
        return sum(driven.connections_lost for driven in self.driven)

    def ack_s(self) -> npt.NDArray[np.float64]:
        """Return how long each acknowledgement took."""
        return np.concatenate(
            [
                (driven.acknowledged_at - phase.due())[driven.acknowledged_at > 0]
                for phase, driven in zip(self.phases, self.driven, strict=True)
            ]
        )

    def late_s(self) -> npt.NDArray[np.float64]:
        """Return how much after its time each message was sent: the generator's own fault."""
        return np.concatenate(
            [d.sent_at - p.due() for p, d in zip(self.phases, self.driven, strict=True)]
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A phase, and when its first and its last points were seen to be stored (monotonic clock)."""

    round: Round
    first_at: float
    last_at: float

    @property
    def drain_s(self) -> float:
        """How long after the last message was due all was stored."""
        return max(0.0, self.last_at - self.round.ended)


class Drivers:
    """All generators: each has its share of the devices, and of the messages."""

    def __init__(self, port: int, plant: Plant, generators: int, ledger: Ledger) -> None:
        self._count = generators
        self._plant = plant
        self._ledger = ledger
        self._first = 0
        self._generators = [
            Generator(port, plant.credentials[n::generators]) for n in range(generators)
        ]

    async def connect(self) -> None:
        """Return when all devices are connected."""
        await asyncio.gather(*[asyncio.to_thread(g.wait_connected) for g in self._generators])

    def end(self) -> None:
        """Cut all connections."""
        for generator in self._generators:
            generator.end()

    def plan(self, rate: float, seconds: float, *, alarms: bool = False) -> list[Phase]:
        """Return a phase for each generator, to begin in a moment; `rate` in points a second."""
        each = rate / len(METRICS) / self._count
        count = max(1, round(each * seconds))
        start, start_ms = time.monotonic() + LEAD_S, time.time() * 1000 + LEAD_S * 1000
        phases = [
            Phase(
                first=self._first,
                count=count,
                rate=each,
                # Out of step with each other, so that together they are as even as one.
                start=start + number / each / self._count,
                start_ms=start_ms + number * 1000 / each / self._count,
                alarms=self._alarms(number, count) if alarms else frozenset(),
            )
            for number in range(self._count)
        ]
        self._first += count
        return phases

    async def drive(self, phases: Sequence[Phase]) -> Round:
        """Let the generators drive their phases; everything they did is in the ledger."""
        driven = await asyncio.gather(
            *[
                asyncio.to_thread(generator.drive, phase)
                for generator, phase in zip(self._generators, phases, strict=True)
            ]
        )
        for number, (phase, result) in enumerate(zip(phases, driven, strict=True)):
            keys = self.keys(number, phase, np.ones(phase.count, dtype=bool))
            self._ledger.sent.append(keys)
            self._ledger.acknowledged.append(self.keys(number, phase, result.acknowledged_at > 0))
        return Round(list(phases), driven)

    def keys(self, number: int, phase: Phase, chosen: npt.NDArray[np.bool_]) -> PointKeys:
        """Return the points of the chosen messages of a generator's phase."""
        devices = len(self._plant.device_ids[number :: self._count])
        numbers = phase.numbers[chosen] % devices * self._count + number
        return self._plant.keys(numbers, phase.due_ms()[chosen])

    def alarms_due_ms(self, phases: Sequence[Phase]) -> dict[UUID, int]:
        """Return when each device with a rule sends what sets it off."""
        due = {}
        for number, phase in enumerate(phases):
            devices = self._plant.device_ids[number :: self._count]
            due_ms = phase.due_ms()
            for alarm in phase.alarms:
                due[devices[alarm % len(devices)]] = int(due_ms[alarm - phase.first])
        return due

    def due_of(
        self, phases: Sequence[Phase], devices: Sequence[int]
    ) -> dict[tuple[UUID, int], float]:
        """Return the messages of some devices (their places) by device and `ts` in ms: when each is due."""
        due = {}
        for number, phase in enumerate(phases):
            own = len(self._plant.device_ids[number :: self._count])
            places = phase.numbers % own * self._count + number
            chosen = np.isin(places, devices)
            for place, ms in zip(places[chosen], phase.due_ms()[chosen], strict=True):
                due[self._plant.device_ids[place], int(ms)] = int(ms) / 1000
        return due

    def first_keys(self, phases: Sequence[Phase]) -> PointKeys:
        """Return the points of a phase's first messages."""
        return self._some_keys(phases, slice(0, 1))

    def last_keys(self, phases: Sequence[Phase]) -> PointKeys:
        """Return the points of a phase's last messages: of enough devices to be of all shards."""
        return self._some_keys(phases, slice(-100, None))

    def _some_keys(self, phases: Sequence[Phase], part: slice) -> PointKeys:
        found = []
        for number, phase in enumerate(phases):
            chosen = np.zeros(phase.count, dtype=bool)
            chosen[part] = True
            found.append(self.keys(number, phase, chosen))
        return np.concatenate(found)

    def _alarms(self, number: int, count: int) -> frozenset[int]:
        """Choose a message of each device with a rule, spread over all but the ends of a phase."""
        devices = len(self._plant.device_ids[number :: self._count])
        ruled = range(number, self._plant.ruled, self._count)
        chosen = set()
        for place, device in enumerate(ruled):
            about = self._first + int(count * (0.1 + 0.8 * place / len(ruled)))
            own = about + (device // self._count - about) % devices
            if own < self._first + count:
                chosen.add(own)
        return frozenset(chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The running platform, what drives it, and who watches."""

    options: Options
    stack: Stack
    memory: MemoryWatch
    database: asyncpg.Connection
    plant: Plant
    drivers: Drivers
    console: Console | None
    """None if the stack has no gateway."""
    probed: Sequence[int]
    """The places of the devices that are watched closely."""


async def measure(options: Options) -> dict[str, Figure]:
    """Run the platform and the load, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="iiot-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)  # noqa: ASYNC240 - once; the servers' own user must be able to enter
        stack = make_stack(
            options.mode, directory, processes=options.processes, shards=options.shards
        )
        try:
            say(f"starting the platform, mode {options.mode}")
            await asyncio.to_thread(stack.start)
            with MemoryWatch(stack.pids) as memory:
                figures = await _measure(stack, memory, options)
        finally:
            say("stopping the platform")
            await asyncio.to_thread(stack.stop)
    return {
        **figures,
        "peak_rss_mb": round(memory.peak_rss_mb),
        "peak_pss_mb": round(memory.peak_pss_mb),
        "seconds": options.seconds,
        "latency_seconds": options.latency_seconds,
        "offered_points_per_s": options.rate,
        "connections": options.connections,
        "shards": options.shards,
        "processes": ",".join(sorted(stack.parts)),
    }


async def _measure(stack: Stack, memory: MemoryWatch, options: Options) -> dict[str, Figure]:
    ledger = Ledger()
    async with _scene(stack, memory, options, ledger) as scene:
        database, plant = scene.database, scene.plant
        say("warming up")
        await _drive_until_stored(scene, options.rate / 4, WARM_UP_S)

        say(f"{options.rate:,.0f} points/s for {options.seconds:.0f} s")
        figures = await _full_rate(scene)
        reached = float(str(figures["points_per_s"]))
        if options.latency_seconds:
            say(f"{reached / 2:,.0f} points/s for {options.latency_seconds:.0f} s")
            figures |= await _half_rate(scene, reached / 2, options.latency_seconds)
        figures |= await _backlog(stack)
        say("comparing what was acknowledged with what is stored")
        figures |= await _compare(ledger, await stored_keys(database, plant))
        figures["quarantined"] = await quarantined(database, plant)
    return {**figures, "rules": plant.ruled}


@contextlib.asynccontextmanager
async def _scene(
    stack: Stack, memory: MemoryWatch, options: Options, ledger: Ledger
) -> AsyncIterator[Scene]:
    """Log in, register the devices and connect them; everything is connected within."""
    async with contextlib.AsyncExitStack() as held:
        console, tenant_id = None, uuid4()
        if stack.gateway_url is not None:
            console = Console(stack.gateway_url, ADMIN_EMAIL, ADMIN_PASSWORD)
            await held.enter_async_context(console)
            tenant_id = await console.log_in()
        database = await asyncpg.connect(stack.admin_url)
        held.push_async_callback(database.close)
        rules = min(options.rules, options.connections) if "rules" in stack.parts else 0
        say(f"registering {options.connections} devices and {rules} rules")
        plant = await build_plant(
            database, tenant_id, options.connections, rules=rules, began_ms=int(time.time() * 1000)
        )
        drivers = Drivers(stack.mqtt_port, plant, options.generators, ledger)
        held.callback(drivers.end)
        await drivers.connect()
        say("connected; waiting until all devices are noted as online")
        await _until(lambda: is_all_told(database, plant), PRESENCE_S, "devices noted as online")
        probed = range(0, len(plant.device_ids), max(1, len(plant.device_ids) // PROBES))[:PROBES]
        if console is not None:
            await console.watch([plant.device_ids[place] for place in probed])
        yield Scene(
            options=options,
            stack=stack,
            memory=memory,
            database=database,
            plant=plant,
            drivers=drivers,
            console=console,
            probed=probed,
        )


async def _full_rate(scene: Scene) -> dict[str, Figure]:
    pids = scene.stack.pids()
    before = spent(pids)
    began = time.monotonic()
    stored = await _drive_until_stored(scene, scene.options.rate, scene.options.seconds)
    driven = stored.round
    cost = spent(pids) - before
    points = sum(phase.count for phase in driven.phases) * len(METRICS)
    million = (points - driven.unacknowledged * len(METRICS)) / 1e6
    ack_s = driven.ack_s()
    return {
        "points_per_s": round(million * 1e6 / (stored.last_at - stored.first_at)),
        "kept_up": not driven.unacknowledged and stored.drain_s < KEPT_UP_S,
        "cpu_s_per_million_points": round(cost.total_s / million, 2),
        "cpu_s_per_million_points_by_process": {
            name: round(cpu_s / million, 2) for name, cpu_s in cost.by_process.items()
        },
        "generator_cpu_s_per_million_points": round(driven.cpu_s / million, 2),
        # Whatever else ran on the machine, the bench itself included: more than a little of it
        # makes every other figure worse than it is.
        "other_cpu_percent": _percent(cost.machine_s - cost.total_s - driven.cpu_s, cost),
        "machine_busy_percent": _percent(cost.machine_s, cost),
        "drain_s": round(stored.drain_s, 2),
        "full_rate_ack_p50_ms": percentile_ms(ack_s, 50),
        "full_rate_ack_p99_ms": percentile_ms(ack_s, 99),
        "generator_late_p99_ms": percentile_ms(driven.late_s(), 99),
        "connections_lost": driven.connections_lost,
        "unacknowledged": driven.unacknowledged,
        "memory_growth_mb_per_h": growth_mb_per_h(scene.memory.between(began, driven.ended)),
    }


async def _half_rate(scene: Scene, rate: float, seconds: float) -> dict[str, Figure]:
    drivers, plant, console = scene.drivers, scene.plant, scene.console
    phases = drivers.plan(rate, seconds, alarms=True)
    stored = StoredProbe(plant, scene.probed, phases[0].start_ms)
    alerts = AlertProbe(plant, drivers.alarms_due_ms(phases), scene.stack.parts)
    looks = [stored.look] + ([alerts.look] if alerts.missing else [])
    shown_due = drivers.due_of(phases, scene.probed)
    async with polling(scene.stack.admin_url, looks):
        driven = await drivers.drive(phases)
        with contextlib.suppress(TimeoutError):
            await _until(lambda: _holds(not alerts.missing), LATECOMERS_S, "alerts")
    figures = {
        **_percentiles("ack", driven.ack_s()),
        **_percentiles("stored", stored.latencies_s),
        "stored_samples": len(stored.latencies_s),
        **_percentiles("alert", alerts.latencies_s),
        "alerts_missing": alerts.missing,
        **_percentiles("ws", []),
        "ws_samples": 0,
        "ws_missing": None,
    }
    if console is not None:
        with contextlib.suppress(TimeoutError):
            await _until(lambda: _holds(not console.missing(shown_due)), LATECOMERS_S, "frames")
        shown = [console.seen[m] - due for m, due in shown_due.items() if m in console.seen]
        figures |= {
            **_percentiles("ws", shown),
            "ws_samples": len(shown),
            "ws_missing": console.missing(shown_due),
        }
    return figures


async def _drive_until_stored(scene: Scene, rate: float, seconds: float) -> Stored:
    """Drive a phase, and see its first and its last points stored."""
    drivers, database, plant = scene.drivers, scene.database, scene.plant
    phases = drivers.plan(rate, seconds)
    first, last = drivers.first_keys(phases), drivers.last_keys(phases)
    telling = asyncio.create_task(_tell(scene, seconds))
    try:
        driving = asyncio.create_task(drivers.drive(phases))
        await _until(lambda: has_points(database, plant, first), DRAIN_S, "the first points stored")
        first_stored = time.monotonic()
        driven = await driving
    finally:
        telling.cancel()
    if driven.unacknowledged:
        say(f"{driven.unacknowledged} messages were not acknowledged")
    await _until(lambda: has_points(database, plant, last), DRAIN_S, "the last points stored")
    if scene.console is not None:
        scene.console.check()
    return Stored(driven, first_stored, time.monotonic())


async def _tell(scene: Scene, seconds: float) -> None:
    """Say now and then how far a phase is."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        newest = scene.memory.samples[-1].own_mb
        own = ", ".join(f"{name} {mb:.0f}" for name, mb in newest.items())
        say(f"{time.monotonic() - began:.0f} of {seconds:.0f} s; memory in MB: {own}")


async def _backlog(stack: Stack) -> dict[str, Figure]:
    """Wait until everything on the bus is read, and return what is not."""
    say("waiting until the bus is empty")
    deadline = time.monotonic() + DRAIN_S
    while (held := await stack.backlog()) is not None:
        if not held.waiting or time.monotonic() > deadline:
            return {"queue_depth": held.waiting, "dead_letters": held.dead}
        await asyncio.sleep(1)
    return {"queue_depth": None, "dead_letters": None}


async def _compare(ledger: Ledger, stored: PointKeys) -> dict[str, Figure]:
    sent = np.concatenate(ledger.sent)
    if len(np.unique(sent)) < len(sent):
        raise RuntimeError("two messages of a device had the same ts: take more devices")
    once = np.unique(stored)
    acknowledged = np.concatenate(ledger.acknowledged)
    return {
        "lost": len(np.setdiff1d(acknowledged, once, assume_unique=True)),
        "duplicated": len(stored) - len(once),
        "never_sent": len(np.setdiff1d(once, sent, assume_unique=True)),
    }


async def _until(is_so: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not await is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(0.02)


async def _holds(claim: bool) -> bool:
    return claim


def _percentiles(
    name: str, seconds: Sequence[float] | npt.NDArray[np.float64]
) -> dict[str, Figure]:
    durations = np.asarray(seconds, dtype=np.float64)
    return {f"{name}_p{n}_ms": percentile_ms(durations, n) for n in (50, 99)}


def _percent(cpu_s: float, cost: Spent) -> float:
    """Return processor seconds as a share of all that the machine had in that time."""
    return round(100 * cpu_s / cost.elapsed_s / (os.cpu_count() or 1), 1)


def read_arguments(
    arguments: Sequence[str] | None = None,
    *,
    prog: str = "python -m tests.bench.ingest",
    description: str | None = __doc__,
    defaults: Options | None = None,
) -> tuple[Options, bool]:
    """Return what is asked for, and whether as JSON."""
    defaults = defaults or Options()
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, last on stdout")
    parser.add_argument("--mode", choices=MODES, default=defaults.mode,
                        help=f"what to measure (default {defaults.mode})")  # fmt: skip
    for name, unit, text in (
        ("seconds", "S", "how long at the full rate"),
        ("latency_seconds", "S", "how long at half of it, 0 for not at all"),
        ("rate", "POINTS/S", "the full rate; a message has three points"),
        ("connections", "N", "devices, each with a connection"),
        ("rules", "N", "so many devices have a rule"),
        ("generators", "N", "processes that send, each with its share of the devices"),
        ("shards", "N", "into how many streams telemetry is divided (TELEMETRY_SHARDS)"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar=unit,
            help=f"{text} (default {default:g})",
        )  # fmt: skip
    parser.add_argument(
        "--processes", type=_processes, default=defaults.processes, metavar="NAME,NAME",
        help=f"in mode cluster, only these of {', '.join(PROCESSES)} (default all)",
    )  # fmt: skip
    chosen = vars(parser.parse_args(arguments))
    as_json: bool = chosen.pop("json")
    if chosen["mode"] == "edge" and chosen["processes"] != PROCESSES:
        parser.error("the edge is one process: --processes is for mode cluster")
    return Options(**chosen), as_json


def _processes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(PROCESSES):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
    if missing := {"ingest", "ingest-writer"} - set(names):
        raise argparse.ArgumentTypeError(f"nothing is stored without {', '.join(sorted(missing))}")
    if "gateway" in names and "tenancy" not in names:
        raise argparse.ArgumentTypeError("nobody can log in at the gateway without tenancy")
    return names


def run(options: Options) -> dict[str, Figure]:
    """Measure; on SIGTERM or Ctrl-C stop the servers and exit with 130."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # so that the servers are stopped

    signal.signal(signal.SIGTERM, end)
    try:
        return asyncio.run(measure(options))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def main() -> None:
    """Run the bench as a command."""
    options, as_json = read_arguments()
    print_report(run(options), mode=options.mode, as_json=as_json)


if __name__ == "__main__":
    main()
