"""Telemetry by MQTT: how many points a second, at what cost, how soon they are stored, what is lost.

The bench starts the platform privately, connects devices to it, and drives it in two phases.
First at the full rate: points per second and processor time per million points, from the first
message until the last is stored. Then at half of the rate that was reached: the latencies, from
the moment a message was due at the device to

- its PUBACK at the device (`ack`, every message);
- its committed row (`stored`, 16 devices): their newest points are asked for by primary key in
  PostgreSQL about every 5 ms, so a figure is up to that much too high;
- the alert that it sets off (`alert`, one message for each rule): the alert's committed row, or
  without alerting the committed firing of its rule, asked for in the same way.

At the end the points that were acknowledged are compared with those that are stored, one by one.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from uuid import UUID

import asyncpg
import numpy as np
import numpy.typing as npt

from tests.bench.generator import METRICS, Driven, Generator, Phase
from tests.bench.meter import PeakMemory, Spent, spent
from tests.bench.plant import (
    Plant,
    PointKeys,
    as_time,
    build_plant,
    has_points,
    is_all_told,
    quarantined,
    stored_keys,
)
from tests.bench.report import Figure, percentile_ms, print_report, provenance, say
from tests.bench.stack import MODES, Stack, make_stack

POLL_S = 0.005
PROBES = 16
LEAD_S = 0.3
WARM_UP_S = 2.0
DRAIN_S = 60.0
KEPT_UP_S = 1.0
"""A platform that has stored the last point so soon after it was due could have gone on for ever."""
PRESENCE_S = 120.0


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


class StoredProbe:
    """Sees points of some devices as soon as they are committed."""

    def __init__(self, plant: Plant, since_ms: float) -> None:
        step = max(1, len(plant.device_ids) // PROBES)
        since = as_time(int(since_ms) - 1)
        self._plant = plant
        self._newest = {int(number): since for number in plant.series[:: step * len(METRICS)]}
        self.latencies_s: list[float] = []

    async def look(self, database: asyncpg.Connection) -> None:
        """Note what has come since the last look."""
        rows = await database.fetch(
            """
            SELECT w.series, p.ts FROM unnest($2::int[], $3::timestamptz[]) AS w(series, newest)
            CROSS JOIN LATERAL (
              SELECT ts FROM historian.points
              WHERE tenant = $1 AND series = w.series AND ts > w.newest
            ) AS p
            """,
            self._plant.tenant,
            list(self._newest),
            list(self._newest.values()),
        )
        now = time.time()
        for row in rows:
            self._newest[row["series"]] = max(row["ts"], self._newest[row["series"]])
            self.latencies_s.append(now - row["ts"].timestamp())


class AlertProbe:
    """Sees alerts (or firings) of the plant's rules as soon as they are committed."""

    def __init__(self, plant: Plant, due_ms: Mapping[UUID, int], parts: frozenset[str]) -> None:
        self._tenant_id = plant.tenant_id
        self._due_ms = dict(due_ms)
        self._query = (
            "SELECT device_id FROM alerting.alerts WHERE tenant_id = $1"
            if "alerting" in parts
            else "SELECT device_id FROM rules.rule_state"
            " WHERE tenant_id = $1 AND fired_at IS NOT NULL"
        )
        self.latencies_s: list[float] = []

    @property
    def missing(self) -> int:
        """How many alarms were not seen."""
        return len(self._due_ms)

    async def look(self, database: asyncpg.Connection) -> None:
        """Note what has come since the last look."""
        rows = await database.fetch(self._query, self._tenant_id)
        now = time.time()
        for row in rows:
            due_ms = self._due_ms.pop(row["device_id"], None)
            if due_ms is not None:
                self.latencies_s.append(now - due_ms / 1000)


async def measure(options: Options) -> dict[str, Figure]:
    """Run the platform and the load, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="iiot-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)  # noqa: ASYNC240 - once; the servers' own user must be able to enter
        stack = make_stack(options.mode, directory)
        try:
            say(f"starting the platform, mode {options.mode}")
            await asyncio.to_thread(stack.start)
            with PeakMemory(stack.pids) as memory:
                figures = await _measure(stack, options)
        finally:
            say("stopping the platform")
            await asyncio.to_thread(stack.stop)
    return {
        **figures,
        "peak_rss_mb": round(memory.rss_mb),
        "peak_pss_mb": round(memory.pss_mb),
        **provenance(),
    }


async def _measure(stack: Stack, options: Options) -> dict[str, Figure]:
    database = await asyncpg.connect(stack.admin_url)
    ledger = Ledger()
    rules = min(options.rules, options.connections) if "rules" in stack.parts else 0
    say(f"registering {options.connections} devices and {rules} rules")
    plant = await build_plant(
        database, options.connections, rules=rules, began_ms=int(time.time() * 1000)
    )
    drivers = Drivers(stack.mqtt_port, plant, options.generators, ledger)
    try:
        await drivers.connect()
        say("connected; waiting until all devices are noted as online")
        await _until(lambda: is_all_told(database, plant), PRESENCE_S, "devices noted as online")
        say("warming up")
        await _drive_until_stored(drivers, database, plant, options.rate / 4, WARM_UP_S)

        say(f"{options.rate:,.0f} points/s for {options.seconds:.0f} s")
        full = await _full_rate(stack, drivers, database, plant, options)
        figures = full
        reached = float(str(full["points_per_s"]))
        if options.latency_seconds:
            say(f"{reached / 2:,.0f} points/s for {options.latency_seconds:.0f} s")
            figures = full | await _half_rate(
                stack, drivers, database, plant, reached / 2, options.latency_seconds
            )
    finally:
        drivers.end()
    say("comparing what was acknowledged with what is stored")
    stored = await stored_keys(database, plant)
    figures |= await _compare(ledger, stored)
    figures["quarantined"] = await quarantined(database, plant)
    await database.close()
    return {
        **figures,
        "mode": options.mode,
        "parts": ",".join(sorted(stack.parts)),
        "seconds": options.seconds,
        "rate": options.rate,
        "connections": options.connections,
        "rules": rules,
    }


async def _full_rate(
    stack: Stack,
    drivers: Drivers,
    database: asyncpg.Connection,
    plant: Plant,
    options: Options,
) -> dict[str, Figure]:
    pids = stack.pids()
    before = spent(pids)
    stored = await _drive_until_stored(drivers, database, plant, options.rate, options.seconds)
    driven = stored.round
    cost = spent(pids) - before
    points = sum(phase.count for phase in driven.phases) * len(METRICS)
    million = (points - driven.unacknowledged * len(METRICS)) / 1e6
    ack_s = driven.ack_s()
    return {
        "points_per_s": round(million * 1e6 / (stored.last_at - stored.first_at)),
        "kept_up": not driven.unacknowledged and stored.drain_s < KEPT_UP_S,
        "cpu_s_per_million_points": round(cost.total_s / million, 2),
        "cpu_by_process": {n: round(s / million, 2) for n, s in cost.by_process.items()},
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
    }


async def _half_rate(
    stack: Stack,
    drivers: Drivers,
    database: asyncpg.Connection,
    plant: Plant,
    rate: float,
    seconds: float,
) -> dict[str, Figure]:
    phases = drivers.plan(rate, seconds, alarms=True)
    stored = StoredProbe(plant, phases[0].start_ms)
    alerts = AlertProbe(plant, drivers.alarms_due_ms(phases), stack.parts)
    looks = [stored.look] + ([alerts.look] if alerts.missing else [])
    async with _polling(stack.admin_url, looks):
        driven = await drivers.drive(phases)
        with contextlib.suppress(TimeoutError):
            await _until(lambda: _holds(not alerts.missing), 5.0, "alerts")
    ack_s, stored_s = driven.ack_s(), np.array(stored.latencies_s)
    alert_s = np.array(alerts.latencies_s)
    return {
        "ack_p50_ms": percentile_ms(ack_s, 50),
        "ack_p99_ms": percentile_ms(ack_s, 99),
        "stored_p50_ms": percentile_ms(stored_s, 50),
        "stored_p99_ms": percentile_ms(stored_s, 99),
        "stored_samples": len(stored_s),
        "alert_p50_ms": percentile_ms(alert_s, 50),
        "alert_p99_ms": percentile_ms(alert_s, 99),
        "alerts_missing": alerts.missing,
        "ws_p99_ms": None,
    }


async def _drive_until_stored(
    drivers: Drivers, database: asyncpg.Connection, plant: Plant, rate: float, seconds: float
) -> Stored:
    """Drive a phase, and see its first and its last points stored."""
    phases = drivers.plan(rate, seconds)
    first, last = drivers.first_keys(phases), drivers.last_keys(phases)
    driving = asyncio.create_task(drivers.drive(phases))
    await _until(lambda: has_points(database, plant, first), DRAIN_S, "the first points stored")
    first_stored = time.monotonic()
    driven = await driving
    if driven.unacknowledged:
        say(f"{driven.unacknowledged} messages were not acknowledged")
    await _until(lambda: has_points(database, plant, last), DRAIN_S, "the last points stored")
    return Stored(driven, first_stored, time.monotonic())


async def _compare(ledger: Ledger, stored: PointKeys) -> dict[str, Figure]:
    sent = np.concatenate(ledger.sent)
    if len(np.unique(sent)) < len(sent):
        raise RuntimeError("two messages of a device had the same ts: take more devices")
    once = np.unique(stored)
    return {
        "lost": len(np.setdiff1d(np.concatenate(ledger.acknowledged), once)),
        "duplicated": len(stored) - len(once),
        "never_sent": len(np.setdiff1d(once, sent)),
    }


@contextlib.asynccontextmanager
async def _polling(
    url: str, looks: Sequence[Callable[[asyncpg.Connection], Awaitable[None]]]
) -> AsyncIterator[None]:
    """Let each look again every 5 ms, on a connection of its own, while the block lasts."""

    async def poll(look: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
        database = await asyncpg.connect(url)
        try:
            while True:
                await look(database)
                await asyncio.sleep(POLL_S)
        finally:
            database.terminate()

    tasks = [asyncio.create_task(poll(look)) for look in looks]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def _until(is_so: Callable[[], Awaitable[bool]], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not await is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(0.02)


async def _holds(claim: bool) -> bool:
    return claim


def _percent(cpu_s: float, cost: Spent) -> float:
    """Return processor seconds as a share of all that the machine had in that time."""
    return round(100 * cpu_s / cost.elapsed_s / (os.cpu_count() or 1), 1)


def read_arguments(arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """Return what is asked for, and whether as JSON."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.ingest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="one JSON line, last on stdout")
    parser.add_argument("--mode", choices=MODES, default=defaults.mode,
                        help="what to measure: a process a service, or all in one")  # fmt: skip
    for name, unit, text in (
        ("seconds", "S", "how long at the full rate"),
        ("latency_seconds", "S", "how long at half of it, 0 for not at all"),
        ("rate", "POINTS/S", "the full rate; a message has three points"),
        ("connections", "N", "devices, each with a connection"),
        ("rules", "N", "so many devices have a rule"),
        ("generators", "N", "processes that send, each with its share of the devices"),
    ):
        default = getattr(defaults, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, metavar=unit,
            help=f"{text} (default {default:g})",
        )  # fmt: skip
    chosen = vars(parser.parse_args(arguments))
    as_json: bool = chosen.pop("json")
    return Options(**chosen), as_json


def main() -> None:
    """Run the bench as a command."""
    options, as_json = read_arguments()

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # so that the servers are stopped

    signal.signal(signal.SIGTERM, end)
    try:
        figures = asyncio.run(measure(options))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    print_report(figures, as_json=as_json)


if __name__ == "__main__":
    main()
