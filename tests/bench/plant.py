"""The devices of a bench in the platform's database, and what has become of their points.

They are put there as the database's superuser, past the API: what is measured is telemetry, and two
thousand requests before each run would only take time. Their series are made as well, as they are
when a device has spoken before.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import numpy.typing as npt

from libs.common.historian.point import Kind
from services.ingest.domain.token import hash_token, new_token
from tests.bench.generator import ALARM_METRIC, ALARM_VALUE, METRICS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_2000_US = 946_684_800_000_000

# A row of (series, ts) in PostgreSQL's binary COPY format, which has a header and a trailer.
_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("series_length", ">i4"),
        ("series", ">i4"),
        ("ts_length", ">i4"),
        ("ts", ">i8"),
    ]
)
_HEADER_BYTES, _TRAILER_BYTES = 19, 2

PointKeys = npt.NDArray[np.int64]
"""Points as numbers: ms since the run began, times the number of series, plus the series' place."""


@dataclass(frozen=True, slots=True)
class Plant:
    """Devices of one tenant. The series of device d's metric m has the place 3 d + m."""

    tenant_id: UUID
    tenant: int
    device_ids: list[UUID]
    tokens: list[str]
    series: npt.NDArray[np.int32]
    ruled: int
    """So many devices, from the first on, have a rule that ALARM_VALUE sets off."""
    began_ms: int

    @property
    def credentials(self) -> list[tuple[str, str]]:
        """The ids and tokens by which they connect."""
        return [(str(i), t) for i, t in zip(self.device_ids, self.tokens, strict=True)]

    def keys(self, numbers: npt.NDArray[np.int64], due_ms: npt.NDArray[np.int64]) -> PointKeys:
        """Return the points of messages, three each: their numbers, and their `ts`."""
        first = (due_ms - self.began_ms) * len(self.series)
        first = first + numbers % len(self.device_ids) * len(METRICS)
        return np.concatenate([first + place for place in range(len(METRICS))])


async def build_plant(
    database: asyncpg.Connection, tenant_id: UUID, devices: int, *, rules: int, began_ms: int
) -> Plant:
    """Register devices with all their series, and a rule on each of the first `rules`."""
    now = datetime.now(UTC)
    device_ids = [uuid4() for _ in range(devices)]
    tokens = [new_token() for _ in range(devices)]
    async with database.transaction():
        tenant: int = await database.fetchval("SELECT historian.tenant_number($1)", tenant_id)
        await database.copy_records_to_table(
            "devices",
            schema_name="ingest",
            columns=["tenant_id", "id", "name", "type", "created_at", "updated_at"],
            records=[
                (tenant_id, device_id, f"bench {number}", "bench", now, now)
                for number, device_id in enumerate(device_ids)
            ],
        )
        await database.copy_records_to_table(
            "credentials",
            schema_name="ingest",
            columns=["tenant_id", "device_id", "token_hash", "created_at"],
            records=[
                (tenant_id, device_id, hash_token(token), now)
                for device_id, token in zip(device_ids, tokens, strict=True)
            ],
        )
        await database.copy_records_to_table(
            "series",
            schema_name="historian",
            columns=["tenant", "device_id", "metric", "kind"],
            records=[
                (tenant, device_id, metric, int(Kind.NUMBER))
                for device_id in device_ids
                for metric in METRICS
            ],
        )
        rows = await database.fetch(
            "SELECT id, device_id, metric FROM historian.series WHERE tenant = $1", tenant
        )
        if rules:
            await _add_rules(database, tenant_id, device_ids[:rules], now)
    number_of = {(row["device_id"], row["metric"]): row["id"] for row in rows}
    series = [number_of[device_id, metric] for device_id in device_ids for metric in METRICS]
    return Plant(
        tenant_id, tenant, device_ids, tokens, np.array(series, dtype=np.int32), rules, began_ms
    )


async def _add_rules(
    database: asyncpg.Connection, tenant_id: UUID, device_ids: Sequence[UUID], now: datetime
) -> None:
    # It never clears, so that whoever looks later finds it fired.
    condition = json.dumps({"operator": "gt", "value": ALARM_VALUE - 1, "clear_value": -1.0})
    await database.copy_records_to_table(
        "rules",
        schema_name="rules",
        columns=["tenant_id", "id", "name", "type", "device_id", "metric", "condition", "severity",
                 "created_at", "updated_at"],
        records=[
            (tenant_id, uuid4(), f"bench {number}", "threshold", device_id, ALARM_METRIC, condition,
             "high", now, now)
            for number, device_id in enumerate(device_ids)
        ],
    )  # fmt: skip


async def is_all_told(database: asyncpg.Connection, plant: Plant) -> bool:
    """Whether every device is noted as online, and every event of that has left."""
    waiting = await database.fetchval(
        "SELECT count(*) FROM ingest.devices WHERE tenant_id = $1 AND status <> 'online'",
        plant.tenant_id,
    )
    return not waiting and not await database.fetchval("SELECT count(*) FROM ingest.outbox")


async def has_points(database: asyncpg.Connection, plant: Plant, keys: PointKeys) -> bool:
    """Whether all these points are stored. Meant for a few: it looks each up by its key."""
    places = len(plant.series)
    found: int = await database.fetchval(
        """
        SELECT count(*) FROM unnest($2::int[], $3::timestamptz[]) AS w(series, ts)
        JOIN historian.points p ON p.tenant = $1 AND p.series = w.series AND p.ts = w.ts
        """,
        plant.tenant,
        plant.series[keys % places].tolist(),
        [as_time(plant.began_ms + int(key)) for key in keys // places],
    )
    return found == len(keys)


async def stored_keys(database: asyncpg.Connection, plant: Plant) -> PointKeys:
    """Return every point of the plant that is stored, as often as it is, in order."""
    # Nearly all rows of the table are wanted, which PostgreSQL, without statistics, does not know.
    await database.execute("SET enable_indexscan = off; SET enable_bitmapscan = off")
    gathered = bytearray()

    async def gather(data: bytes) -> None:
        gathered.extend(data)

    await database.copy_from_query(
        "SELECT series, ts FROM historian.points WHERE tenant = $1",
        plant.tenant,
        output=gather,
        format="binary",
    )
    rows = np.frombuffer(gathered[_HEADER_BYTES:-_TRAILER_BYTES], dtype=_ROW)
    ms = (rows["ts"].astype(np.int64) + _EPOCH_2000_US) // 1000 - plant.began_ms
    place_of = np.full(int(plant.series.max()) + 1, -1, dtype=np.int64)
    place_of[plant.series] = np.arange(len(plant.series))
    return np.sort(ms * len(plant.series) + place_of[rows["series"].astype(np.int64)])


async def quarantined(database: asyncpg.Connection, plant: Plant) -> int:
    """Return how many points of the plant were refused."""
    count: int = await database.fetchval(
        "SELECT count(*) FROM ingest.quarantine WHERE tenant_id = $1", plant.tenant_id
    )
    return count


def as_time(ms: int) -> datetime:
    """Return ms since 1970 UTC as an aware datetime."""
    return EPOCH + timedelta(milliseconds=ms)
