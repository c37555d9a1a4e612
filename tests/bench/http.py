"""Telemetry over HTTP in batches: how many points a second are accepted, and how many stored.

Each connection is a device that posts one batch after the other, each when the one before was answered:
so many readings of three metrics, a millisecond apart. Requests go to ingest itself, so that what is
measured is ingest; what the gateway adds is measured by `tests.bench.gateway`. At the end what was
answered 202 is compared with what is stored, batch by batch.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import numpy as np

from tests.bench.generator import METRICS
from tests.bench.meter import spent
from tests.bench.plant import as_time, build_plant, quarantined
from tests.bench.report import Figure, percentile_ms, print_report, say
from tests.bench.stack import ClusterStack

PROCESSES = ("ingest", "ingest-writer", "rules", "alerting")
UNLIMITED = {"INGEST_DEVICE_MESSAGES_PER_SECOND": "1e9", "INGEST_DEVICE_BURST": "1e9"}
"""A few devices stand for many here."""
DRAIN_S = 120.0
POLL_S = 0.1


def as_json(first_ms: int, readings: int) -> bytes:
    """Return a batch as an array of readings."""
    return json.dumps(
        [
            {"ts": first_ms + n, "values": dict.fromkeys(METRICS, float(n % 100))}
            for n in range(readings)
        ],
        separators=(",", ":"),
    ).encode()


def as_ndjson(first_ms: int, readings: int) -> bytes:
    """Return a batch as a reading a line."""
    return b"\n".join(
        json.dumps(
            {"ts": first_ms + n, "values": dict.fromkeys(METRICS, float(n % 100))},
            separators=(",", ":"),
        ).encode()
        for n in range(readings)
    )


def as_csv(first_ms: int, readings: int) -> bytes:
    """Return a batch as a table with a column for each metric."""
    lines = [",".join(("ts", *METRICS))]
    lines += [
        ",".join((str(first_ms + n), *[f"{n % 100}.0"] * len(METRICS))) for n in range(readings)
    ]
    return "\n".join(lines).encode()


FORMS: dict[str, tuple[str, Callable[[int, int], bytes]]] = {
    "json": ("application/json", as_json),
    "ndjson": ("application/x-ndjson", as_ndjson),
    "csv": ("text/csv", as_csv),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients' process is told."""

    host: str
    port: int
    tokens: Sequence[str]
    form: str
    readings: int
    first_ms: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Driven:
    """What the clients' process tells: batches answered 202 by device, and how long each took."""

    batches: list[int]
    answered_s: list[float]
    began: float
    ended: float


def drive(load: Load) -> Driven:
    """Post until the time is over; runs in a process of its own."""
    return asyncio.run(_drive(load))


async def _drive(load: Load) -> Driven:
    content_type, write = FORMS[load.form]
    batches = [0] * len(load.tokens)
    answered: list[float] = []
    began = time.monotonic()

    async def device(number: int, token: str) -> None:
        reader, writer = await asyncio.open_connection(load.host, load.port)
        head = (
            f"POST /api/v1/telemetry HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n"
            f"content-type: {content_type}\r\ncontent-length: "
        ).encode()
        while time.monotonic() < began + load.seconds:
            body = write(load.first_ms + batches[number] * load.readings, load.readings)
            sent = time.monotonic()
            writer.write(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            status = await _answer(reader)
            if status != 202:
                raise RuntimeError(f"answered {status}")
            answered.append(time.monotonic() - sent)
            batches[number] += 1
        writer.close()

    await asyncio.gather(*(device(number, token) for number, token in enumerate(load.tokens)))
    return Driven(batches, answered, began, time.monotonic())


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


async def measure(stack: ClusterStack, chosen: argparse.Namespace) -> dict[str, Figure]:
    """Build the devices, let them post, and compare."""
    database = await asyncpg.connect(stack.admin_url)
    first_ms = int(datetime.now(UTC).timestamp() * 1000) - 24 * 3_600_000
    try:
        plant = await build_plant(
            database, uuid4(), chosen.connections, rules=chosen.rules, began_ms=first_ms
        )
        url = stack.url("ingest")
        load = Load(
            "127.0.0.1",
            int(url.rpartition(":")[2]),
            plant.tokens,
            chosen.form,
            chosen.readings,
            first_ms,
            chosen.seconds,
        )
        say(f"{chosen.connections} devices post {chosen.readings} readings at a time")
        before = spent(stack.pids())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            driven = await asyncio.to_thread(pool.apply, drive, (load,))
        each = chosen.readings * len(METRICS)
        accepted = sum(driven.batches) * each
        say(f"{accepted} points accepted; waiting until they are stored")
        stored_at = await _all_stored(database, plant.tenant, accepted)
        cost = spent(stack.pids()) - before
        there = await _stored(database, plant.tenant, first_ms, chosen.readings)
        refused = await quarantined(database, plant)
    finally:
        await database.close()
    wanted = {
        (device, batch): each
        for device, count in zip(plant.device_ids, driven.batches, strict=True)
        for batch in range(count)
    }
    lost = sum(max(0, count - there.get(key, 0)) for key, count in wanted.items())
    took = np.array(driven.answered_s)
    return {
        "form": chosen.form,
        "connections": chosen.connections,
        "readings_per_batch": chosen.readings,
        "rules": chosen.rules,
        "accepted_points_per_s": round(accepted / (driven.ended - driven.began)),
        "stored_points_per_s": round(accepted / (stored_at - driven.began)),
        "cpu_s_per_million_points": round(cost.total_s / max(1, accepted) * 1e6, 2),
        "cpu_s_per_million_points_by_process": {
            name: round(seconds / max(1, accepted) * 1e6, 2)
            for name, seconds in cost.by_process.items()
        },
        "answered_p50_ms": percentile_ms(took, 50),
        "answered_p99_ms": percentile_ms(took, 99),
        "lost": lost,
        "never_sent": sum(count for key, count in there.items() if key not in wanted),
        "quarantined": refused,
    }


async def _all_stored(database: asyncpg.Connection, tenant: int, points: int) -> float:
    """Wait until so many points are stored; return when that was seen (monotonic clock)."""
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        count = await database.fetchval(
            "SELECT count(*) FROM historian.points WHERE tenant = $1", tenant
        )
        if count >= points:
            return time.monotonic()
        await asyncio.sleep(POLL_S)
    raise RuntimeError(f"only {count} of {points} points were stored after {DRAIN_S:.0f} s")


async def _stored(
    database: asyncpg.Connection, tenant: int, first_ms: int, readings: int
) -> dict[tuple[UUID, int], int]:
    """Return how many points of each device's batches are stored."""
    rows = await database.fetch(
        """
        SELECT s.device_id, (extract(epoch FROM p.ts - $2) * 1000)::bigint / $3 AS batch, count(*)
        FROM historian.points p JOIN historian.series s ON s.tenant = p.tenant AND s.id = p.series
        WHERE p.tenant = $1 GROUP BY 1, 2
        """,
        tenant,
        as_time(first_ms),
        readings,
    )
    return {(row["device_id"], row["batch"]): row["count"] for row in rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench as a command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.http",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--readings", type=int, default=1_000, help="readings in a batch")
    parser.add_argument("--rules", type=int, default=0)
    parser.add_argument("--form", choices=sorted(FORMS), default="json")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as folder:
        stack = ClusterStack(Path(folder), PROCESSES, 4, UNLIMITED)
        say("starting the platform")
        try:
            stack.start()
            figures = asyncio.run(measure(stack, chosen))
        finally:
            stack.stop()
    print_report(figures, mode="cluster", as_json=chosen.json)


if __name__ == "__main__":
    main()
