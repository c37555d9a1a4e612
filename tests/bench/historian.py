"""The historian's layout: how fast points go in, and how much room one takes, beside other layouts.

Four tables take the same batches in turns, on one private PostgreSQL, in transactions of their own:

- `historian`: the platform's own `historian.points`, written as ingest writes it: binary COPY, keyed
  (tenant, series, ts) by small numbers, in daily partitions;
- `unnest`: the same table written by `INSERT … SELECT unnest(…) ON CONFLICT DO NOTHING`, which is
  what COPY falls back to when a point is there already;
- `uuids`: keyed by the tenant's and the device's UUIDs and the metric's name, by unnest as well;
- `plain`: binary COPY into a table without any key: what the server could do.

A batch holds the next point of each of so many series. Rates are rows a second of the time that
the layout's own transactions took, COMMIT included; processor time is PostgreSQL's and ours.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import numpy as np

from deploy.local import servers
from deploy.local.database import PlatformDatabase
from deploy.local.private import PrivateServer
from libs.common.historian.writer import Columns, Connection, DayPartitions, write_points
from tests.bench.meter import spent
from tests.bench.report import Figure, print_report, say

START = datetime(2026, 1, 1, 6, tzinfo=UTC)
START_US = int(START.timestamp() * 1_000_000)
METRICS = ("temperature", "vibration", "current", "pressure", "flow")
TELL_EVERY = 50

LAYOUTS = """
    CREATE SCHEMA bench;
    CREATE TABLE bench.by_unnest (LIKE historian.points INCLUDING ALL) PARTITION BY RANGE (ts);
    CREATE TABLE bench.by_unnest_day PARTITION OF bench.by_unnest
      FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z');
    CREATE TABLE bench.by_uuids (
      ts timestamptz NOT NULL,
      value double precision NOT NULL,
      tenant_id uuid NOT NULL,
      device_id uuid NOT NULL,
      quality smallint NOT NULL,
      metric text NOT NULL,
      PRIMARY KEY (tenant_id, device_id, metric, ts)
    ) PARTITION BY RANGE (ts);
    CREATE TABLE bench.by_uuids_day PARTITION OF bench.by_uuids
      FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z');
    CREATE TABLE bench.plain (LIKE historian.points);
"""
SIZED = {
    "historian": "historian.points_20260101",
    "unnest": "bench.by_unnest_day",
    "uuids": "bench.by_uuids_day",
    "plain": "bench.plain",
}
BY_UNNEST = """
    INSERT INTO bench.by_unnest (ts, value, tenant, series, quality)
    SELECT '1970-01-01Z'::timestamptz + us * interval '1 microsecond', value, tenant, series, quality
    FROM unnest($1::bigint[], $2::float8[], $3::int[], $4::int[], $5::smallint[])
      AS p(us, value, tenant, series, quality) ON CONFLICT DO NOTHING
"""
BY_UUIDS = """
    INSERT INTO bench.by_uuids (ts, value, tenant_id, device_id, quality, metric)
    SELECT '1970-01-01Z'::timestamptz + us * interval '1 microsecond', value, tenant, device, quality,
      metric
    FROM unnest($1::bigint[], $2::float8[], $3::uuid[], $4::uuid[], $5::smallint[], $6::text[])
      AS p(us, value, tenant, device, quality, metric) ON CONFLICT DO NOTHING
"""

Write = Callable[[Connection, "Batch"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Batch:
    """The next point of each series; the lists are made before, so that nobody pays for them."""

    columns: Columns
    us: list[int]
    values: list[float]
    tenants: list[int]
    series: list[int]
    quality: list[int]


@dataclass(slots=True)
class Taken:
    """What one layout has cost so far."""

    rows: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class Fleet:
    """Whose points they are: five metrics of each device, the devices of a hundred tenants."""

    series: int
    tenants: list[UUID] = field(default_factory=lambda: [uuid4() for _ in range(100)])
    devices: list[UUID] = field(init=False)

    def __post_init__(self) -> None:
        self.devices = [uuid4() for _ in range(-(-self.series // len(METRICS)))]

    def names(self) -> tuple[list[UUID], list[UUID], list[str]]:
        """Return tenant, device and metric of each series."""
        devices = [n // len(METRICS) for n in range(self.series)]
        return (
            [self.tenants[device % len(self.tenants)] for device in devices],
            [self.devices[device] for device in devices],
            [METRICS[n % len(METRICS)] for n in range(self.series)],
        )

    def numbers(self) -> tuple[list[int], list[int]]:
        """Return the numbers of tenant and series of each series."""
        return (
            [1 + n // len(METRICS) % len(self.tenants) for n in range(self.series)],
            list(range(1, self.series + 1)),
        )

    def batch(self, turn: int) -> Batch:
        """Return the batch of a turn, a second after the one before."""
        tenants, series = self.numbers()
        ts = np.full(self.series, START_US + turn * 1_000_000, dtype=np.int64)
        values = np.random.default_rng(turn).normal(50.0, 10.0, self.series)
        quality = np.zeros(self.series, dtype=np.uint8)
        return Batch(
            Columns(
                ts, ts, values, np.array(tenants, np.int32), np.array(series, np.int32), quality
            ),
            ts.tolist(),
            values.tolist(),
            tenants,
            series,
            quality.tolist(),
        )


async def measure(admin_url: str, pid: int, *, rows: int, series: int) -> dict[str, Figure]:
    """Write `rows` rows into each layout and return the figures."""
    fleet = Fleet(series)
    turns = max(2, rows // series)
    if turns > timedelta(hours=17) / timedelta(seconds=1):
        raise SystemExit("the points must fit into one day: take more --series or fewer --rows")
    connection = await asyncpg.connect(admin_url)
    try:
        await connection.execute(LAYOUTS)
        await DayPartitions().ensure(connection, [START.date()])
        layouts = _layouts(fleet)
        taken = {name: Taken() for name in layouts}
        for turn in range(turns):
            batch = fleet.batch(turn)
            for name, write in layouts.items():
                await _write(connection, pid, write, batch, taken[name])
            if turn % TELL_EVERY == TELL_EVERY - 1:
                say(f"{(turn + 1) * series} rows in each of {len(layouts)} layouts")
        sizes = {name: await _bytes(connection, table) for name, table in SIZED.items()}
    finally:
        await connection.close()
    figures: dict[str, Figure] = {"rows": turns * series, "rows_per_batch": series}
    for name, cost in taken.items():
        figures[f"{name}_rows_per_s"] = round(cost.rows / cost.seconds)
        figures[f"{name}_cpu_s_per_million_rows"] = round(cost.cpu_s / cost.rows * 1e6, 2)
        figures[f"{name}_bytes_per_point"] = round(sizes[name] / cost.rows, 1)
    return figures


def _layouts(fleet: Fleet) -> dict[str, Write]:
    tenants, devices, metrics = fleet.names()

    async def historian(connection: Connection, batch: Batch) -> None:
        written = await write_points(connection, batch.columns)
        if written.stored != len(batch.columns):
            raise RuntimeError(f"stored {written.stored} of {len(batch.columns)} points")

    async def unnest(connection: Connection, batch: Batch) -> None:
        await connection.execute(
            BY_UNNEST, batch.us, batch.values, batch.tenants, batch.series, batch.quality
        )

    async def uuids(connection: Connection, batch: Batch) -> None:
        await connection.execute(
            BY_UUIDS, batch.us, batch.values, tenants, devices, batch.quality, metrics
        )

    async def plain(connection: Connection, batch: Batch) -> None:
        instants = [START + timedelta(microseconds=us - START_US) for us in batch.us]
        await connection.copy_records_to_table(
            "plain",
            schema_name="bench",
            columns=("ts", "value", "tenant", "series", "quality"),
            records=list(
                zip(instants, batch.values, batch.tenants, batch.series, batch.quality, strict=True)
            ),
        )

    return {"historian": historian, "unnest": unnest, "uuids": uuids, "plain": plain}


async def _write(
    connection: asyncpg.Connection, pid: int, write: Write, batch: Batch, taken: Taken
) -> None:
    cpu, own = spent({"postgres": pid}), time.process_time()
    began = time.perf_counter()
    async with connection.transaction():
        await write(connection, batch)
    taken.seconds += time.perf_counter() - began
    taken.cpu_s += (spent({"postgres": pid}) - cpu).total_s + time.process_time() - own
    taken.rows += len(batch.columns)


async def _bytes(connection: asyncpg.Connection, table: str) -> int:
    size: int = await connection.fetchval("SELECT pg_total_relation_size($1::regclass)", table)
    return size


def run(*, rows: int, series: int) -> dict[str, Figure]:
    """Start a private PostgreSQL, measure, and end it."""
    with tempfile.TemporaryDirectory(prefix="iiot-bench-") as folder:
        directory = Path(folder)
        server = servers.postgres(directory / "postgres")
        if not isinstance(server, PrivateServer):
            raise SystemExit("this bench needs a PostgreSQL of its own: unset POSTGRES_URL")
        say("starting PostgreSQL")
        server.start()
        try:
            database = PlatformDatabase(server, directory / "passwords.json")
            asyncio.run(database.prepare())
            return asyncio.run(measure(database.admin_url, server.pid, rows=rows, series=series))
        finally:
            server.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the bench as a command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.historian",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in each layout")
    parser.add_argument("--series", type=int, default=5_000, help="series, which is rows a batch")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    options = parser.parse_args(arguments)
    figures = run(rows=options.rows, series=options.series)
    print_report(figures, mode="database", as_json=options.json)


if __name__ == "__main__":
    main()
