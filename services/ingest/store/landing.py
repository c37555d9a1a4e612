"""Where points come to rest: batches from the bus into the historian, in one transaction.

Works as role `historian_writer`, which may insert for every tenant and read none. The inbox mark
lies in the same transaction, so a batch that is delivered twice is stored once, and so is what it
carried for the quarantine.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid5

import asyncpg
import numpy as np

from libs.common.bus.outcome import is_transient
from libs.common.errors import Unavailable
from libs.common.events.ingest import Refused, TelemetryReceived
from libs.common.historian.writer import (
    Columns,
    Connection,
    DayPartitions,
    Rejected,
    Written,
    as_datetime,
    is_of_the_rows,
    write_points,
    write_texts,
)
from services.ingest.store.ledger import by_hour, write_down

SUBSCRIPTION = "ingest.writer"

_CLAIM = """
    INSERT INTO ingest.inbox (subscription, event_id)
    SELECT $1, id FROM unnest($2::uuid[]) AS id ON CONFLICT DO NOTHING RETURNING event_id
"""

_QUARANTINE = """
    INSERT INTO ingest.quarantine
      (tenant_id, id, device_id, received_at, reason, detail, metric, payload, channel, cut_from)
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[],
                         $6::text[], $7::text[], $8::bytea[], $9::text[], $10::int[])
    ON CONFLICT DO NOTHING
"""

# In one order everywhere, so that two who are at it wait for each other and do not deadlock.
_TRIM = """
    SELECT coalesce(sum(ingest.trim_quarantine(tenant, $2, $3)), 0)
    FROM (SELECT DISTINCT tenant FROM unnest($1::uuid[]) AS t(tenant) ORDER BY tenant) AS refused
"""

MADE_AHEAD_DAYS = 7
NEW_DAYS_AT_ONCE = 2
"""How many days are made while batches wait, 40 ms each; the points of others stray for a while."""
STRAY_DAYS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class QuarantineQuota:
    """How much of a tenant's is kept in quarantine; the oldest gives way to what comes."""

    rows: int = 10_000
    payload_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True)
class Landed:
    """What became of a group of batches."""

    stored: int = 0
    duplicates: int = 0
    quarantined: int = 0
    displaced: int = 0
    """Entries of the quarantine that gave way to newer ones."""
    replayed: int = 0
    """Batches that had landed before."""
    rejected: list[Rejected] = field(default_factory=list)


class Landing:
    """Writes batches to the historian. Open before use."""

    def __init__(self, url: str, *, quota: QuarantineQuota, pool_size: int = 2) -> None:
        self._url = url
        self._quota = quota
        self._pool_size = pool_size
        self._pool: asyncpg.Pool | None = None
        self._days = DayPartitions()

    async def open(self) -> None:
        """Connect on demand; a database that is away now is waited for when there is work."""
        self._pool = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._pool_size,
            timeout=5,
            command_timeout=60,
            reset=_keep,
            server_settings={"application_name": "historian-writer", "jit": "off"},
        )
        await self._pool

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()

    async def make_days_ahead(self, today: date) -> None:
        """Learn which partitions there are, and make those from yesterday to a week ahead."""
        assert self._pool is not None
        async with self._pool.acquire() as connection:
            await self._days.learn(connection)
            ahead = range(-1, MADE_AHEAD_DAYS + 1)
            await self._days.ensure(connection, [today + timedelta(days=n) for n in ahead])

    async def house_strays(self) -> None:
        """Make days for points that have none, beside what is being written: up to twenty a call."""
        assert self._pool is not None
        async with self._pool.acquire() as connection:
            await self._days.house_strays(connection, STRAY_DAYS_AT_ONCE)

    async def count_strays(self) -> int:
        """Return how many points lie in no day's partition."""
        assert self._pool is not None
        strays: int = await self._pool.fetchval("SELECT historian.strays()")
        return strays

    async def land(self, batches: Sequence[TelemetryReceived]) -> Landed:
        """Store the batches' points and quarantine what they refused; all or nothing.

        Raises what is transient, and Unavailable if tables or rights are not as they should be:
        that is no fault of the points, so they wait. A point that the store itself refuses is
        quarantined with the store's reason, its neighbours are stored.
        """
        try:
            return await self._land(batches)
        except asyncpg.PostgresError as error:
            if is_transient(error) or is_of_the_rows(error):
                raise
            raise Unavailable(f"the historian cannot be written: {error}") from error

    async def _land(self, batches: Sequence[TelemetryReceived]) -> Landed:
        assert self._pool is not None
        landed = Landed()
        async with self._pool.acquire() as connection:
            await self._days.ensure(connection, self._days.missing(batches)[:NEW_DAYS_AT_ONCE])
            async with connection.transaction():
                claimed = await connection.fetch(_CLAIM, SUBSCRIPTION, [b.id for b in batches])
                if len(claimed) < len(batches):
                    # Delivered again: a writer died after its commit, before it said so.
                    fresh = {row["event_id"] for row in claimed}
                    landed.replayed = len(batches) - len(claimed)
                    batches = [batch for batch in batches if batch.id in fresh]
                for hour, received in by_hour(batches).items():
                    await self._land_hour(connection, hour, received, landed)
        return landed

    async def _land_hour(
        self,
        connection: Connection,
        hour: datetime,
        batches: Sequence[TelemetryReceived],
        landed: Landed,
    ) -> None:
        """Store what was received within one hour, and write down what became of it."""
        columns = Columns.of(batches)
        texts = [text for batch in batches for text in batch.texts]
        points = await write_points(connection, columns)
        others = await write_texts(connection, texts)
        _add(landed, points)
        _add(landed, others)
        refused = [
            (batch.id, batch.at, number, refused)
            for batch in batches
            for number, refused in enumerate(batch.refused)
        ]
        rejected = [*points.rejected, *others.rejected]
        if rejected:
            refused += await _describe(connection, batches[0], rejected)
        if refused:
            quarantined = _quarantine_columns(refused)
            await connection.execute(_QUARANTINE, *quarantined)
            landed.quarantined += len(refused)
            landed.displaced += await connection.fetchval(
                _TRIM, quarantined[0], self._quota.rows, self._quota.payload_bytes
            )
        await write_down(
            connection,
            hour,
            [(columns.series, points), (np.array([t.series for t in texts], np.int32), others)],
            [r for _, _, _, r in refused],
            [gap for batch in batches for gap in batch.gaps],
        )


async def _keep(connection: Connection) -> None:
    """Leave the connection as it is: no transaction here sets what outlives it."""


async def _describe(
    connection: Connection, batch: TelemetryReceived, rejected: Sequence[Rejected]
) -> list[tuple[UUID, datetime, int, Refused]]:
    """Turn points that the store refused into what the quarantine keeps."""
    rows = await connection.fetch(
        "SELECT * FROM historian.describe_series($1)", [point.series for point in rejected]
    )
    described = {row["id"]: row for row in rows}
    refused = []
    for number, point in enumerate(rejected, start=1):
        series = described.get(point.series)
        if series is None:
            continue  # of a tenant that is no more: there is nobody to keep it for
        payload = {
            "ts": as_datetime(point.ts).isoformat(),
            "values": {series["metric"]: point.value},
        }
        refused.append(
            (
                batch.id,
                batch.at,
                -number,
                Refused(
                    tenant_id=series["tenant_id"],
                    device_id=series["device_id"],
                    reason="refused_by_store",
                    detail=point.reason,
                    metric=series["metric"],
                    payload=json.dumps(payload).encode(),
                ),
            )
        )
    return refused


def _quarantine_columns(
    refused: Sequence[tuple[UUID, datetime, int, Refused]],
) -> list[list[object]]:
    return [
        [r.tenant_id for _, _, _, r in refused],
        [uuid5(batch_id, str(number)) for batch_id, _, number, _ in refused],
        [r.device_id for _, _, _, r in refused],
        [
            at.astimezone(UTC) if r.received_at is None else as_datetime(r.received_at)
            for _, at, _, r in refused
        ],
        [r.reason for _, _, _, r in refused],
        [_storable(r.detail) for _, _, _, r in refused],
        [None if r.metric is None else _storable(r.metric) for _, _, _, r in refused],
        [r.payload for _, _, _, r in refused],
        [r.channel for _, _, _, r in refused],
        [r.cut_from for _, _, _, r in refused],
    ]


def _storable(text: str) -> str:
    """PostgreSQL has no text with U+0000, and would refuse the whole batch for it."""
    return text.replace("\0", "\ufffd")


def _add(landed: Landed, written: Written) -> None:
    landed.stored += written.stored
    landed.duplicates += written.duplicates
    landed.rejected += written.rejected
