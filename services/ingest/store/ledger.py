"""The ledger: what became of every point, written down with the points, and added up by device and hour.

The writer appends one row for each transaction and hour, whatever the number of devices; `fold` adds
such rows to the devices' hours. A row is written in the transaction of the points it counts, and
goes in the transaction that adds it, so each is counted once whoever is killed whenever.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import numpy.typing as npt
from sqlalchemy import Row, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.engine import Database
from libs.common.events.ingest import Gap, Refused, TelemetryReceived
from libs.common.historian.writer import Connection, Written
from services.ingest.domain.channel import Channel
from services.ingest.domain.ledger import Counts, Hour
from services.ingest.store.tables import LedgerRow

_Ints: TypeAlias = npt.NDArray[np.int32]

MOST_MISSING = 2**40
"""That a device may be said to have left out within one transaction; so many fit into the column for ever."""

_WRITE_DOWN = """
    INSERT INTO ingest.ledger_log
      (hour, series, stored, duplicates, tenants, devices, quarantined, gaps, missing)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""

# One at a time, so that who comes second finds all that the first has added.
_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended('ingest.ledger', 0))")

_NEWEST = text("SELECT coalesce(max(id), 0) FROM ingest.ledger_log")

_TAKE = text(
    """
    DELETE FROM ingest.ledger_log
    WHERE id IN (
      SELECT id FROM ingest.ledger_log WHERE id <= :up_to ORDER BY id LIMIT :most)
    RETURNING *
    """
)

_ADD = text(
    """
    WITH of_series AS MATERIALIZED (
      SELECT * FROM unnest(cast(:hours AS timestamptz[]), cast(:series AS int[]),
                           cast(:stored AS bigint[]), cast(:duplicates AS bigint[]))
        AS s(hour, series, stored, duplicates)
    ), counted AS (
      SELECT d.tenant_id, d.device_id, s.hour, s.stored, s.duplicates,
        0 AS quarantined, 0 AS gaps, 0 AS missing
      FROM of_series s
      JOIN historian.describe_series((SELECT array_agg(DISTINCT series) FROM of_series)) d
        ON d.id = s.series
      UNION ALL
      SELECT d.tenant_id, d.device_id, d.hour, 0, 0, d.quarantined, d.gaps, d.missing
      FROM unnest(cast(:of_hours AS timestamptz[]), cast(:tenants AS uuid[]),
                  cast(:devices AS uuid[]), cast(:quarantined AS bigint[]), cast(:gaps AS bigint[]),
                  cast(:missing AS bigint[]))
        AS d(hour, tenant_id, device_id, quarantined, gaps, missing)
    ), of_devices AS MATERIALIZED (
      SELECT tenant_id, device_id, hour, sum(stored) AS stored, sum(duplicates) AS duplicates,
        sum(quarantined) AS quarantined, sum(gaps) AS gaps, sum(missing) AS missing
      FROM counted c
      WHERE NOT EXISTS (
        SELECT FROM ingest.tenants x WHERE x.tenant_id = c.tenant_id AND x.status = 'deleted')
      GROUP BY tenant_id, device_id, hour
    ), of_tenants AS (
      INSERT INTO ingest.usage AS u (tenant_id, resource, day, amount)
      SELECT tenant_id, 'points_per_day', (hour AT TIME ZONE 'UTC')::date, sum(stored)
      FROM of_devices GROUP BY 1, 3 HAVING sum(stored) > 0 ORDER BY 1, 3
      ON CONFLICT (tenant_id, resource, day) DO UPDATE SET amount = u.amount + excluded.amount
    )
    INSERT INTO ingest.ledger AS l
      (tenant_id, device_id, hour, accepted, duplicates, quarantined, gaps, missing)
    SELECT tenant_id, device_id, hour, stored, duplicates, quarantined, gaps, missing
    FROM of_devices
    ON CONFLICT (tenant_id, device_id, hour) DO UPDATE
    SET accepted = l.accepted + excluded.accepted,
      duplicates = l.duplicates + excluded.duplicates,
      quarantined = l.quarantined + excluded.quarantined,
      gaps = l.gaps + excluded.gaps, missing = l.missing + excluded.missing
    """
)

_TRIM = text(
    "DELETE FROM ingest.ledger WHERE hour < (SELECT sec.iiot_now()) - cast(:kept AS interval)"
)


class Ledger:
    """The ledger of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def hours(
        self, since: datetime, until: datetime, device_id: UUID | None = None
    ) -> list[Hour]:
        """Return the hours from `since` on and before `until` in which something was received.

        Of one device, or of all together.
        """
        counted = (
            LedgerRow.accepted,
            LedgerRow.duplicates,
            LedgerRow.quarantined,
            LedgerRow.gaps,
            LedgerRow.missing,
        )
        query = (
            select(LedgerRow.hour, *(func.sum(column) for column in counted))
            .where(
                LedgerRow.tenant_id == self._tenant_id,
                LedgerRow.hour >= since,
                LedgerRow.hour < until,
            )
            .group_by(LedgerRow.hour)
            .order_by(LedgerRow.hour)
        )
        if device_id is not None:
            query = query.where(LedgerRow.device_id == device_id)
        return [
            Hour(hour, Counts(*(int(count) for count in counts)))
            for hour, *counts in await self._session.execute(query)
        ]


class Folding:
    """Adds to the ledger what the writer wrote down, for all tenants (role `ingest_engine`)."""

    def __init__(self, engine: Database) -> None:
        self._engine = engine

    async def newest(self) -> int:
        """Return the number of the log's newest row: what is written down by now has none above it."""
        async with self._engine.connection() as connection:
            return int((await connection.execute(_NEWEST)).scalar_one())

    async def fold(self, most: int, up_to: int) -> int:
        """Add up to `most` rows of the log, none newer than `up_to`; return how many those were."""
        async with self._engine.connection() as connection:
            await connection.execute(_TURN)
            rows = (await connection.execute(_TAKE, {"most": most, "up_to": up_to})).all()
            if rows:
                # Of a full log it takes a while, in which this loop has devices to serve.
                await connection.execute(_ADD, await asyncio.to_thread(_added_up, rows))
            return len(rows)

    async def trim(self, kept: timedelta) -> None:
        """Forget hours that are so long over."""
        async with self._engine.connection() as connection:
            await connection.execute(_TRIM, {"kept": kept})


def by_hour(batches: Sequence[TelemetryReceived]) -> dict[datetime, list[TelemetryReceived]]:
    """Group batches by the hour in which their points were received: as a rule it is one."""
    hours: dict[datetime, list[TelemetryReceived]] = {}
    for batch in batches:
        hour = batch.at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        hours.setdefault(hour, []).append(batch)
    return hours


async def write_down(
    connection: Connection,
    hour: datetime,
    written: Sequence[tuple[_Ints, Written]],
    refused: Sequence[Refused],
    gaps: Sequence[Gap],
) -> None:
    """Write down what became of points, of which the series are given, in the open transaction."""
    series, stored, duplicates = _tally(written)
    devices: dict[tuple[UUID, UUID], list[int]] = {}
    for entry in refused:
        if entry.channel == Channel.TELEMETRY:
            devices.setdefault((entry.tenant_id, entry.device_id), [0, 0, 0])[0] += entry.points
    for gap in gaps:
        counts = devices.setdefault((gap.tenant_id, gap.device_id), [0, 0, 0])
        counts[1] += 1
        # Whoever said so: a number too large for its column would hold up all that landed with it.
        counts[2] = min(counts[2] + gap.missing, MOST_MISSING)
    if not series and not devices:
        return
    await connection.execute(
        _WRITE_DOWN,
        hour,
        series,
        stored,
        duplicates,
        [tenant for tenant, _ in devices],
        [device for _, device in devices],
        *([counts[n] for counts in devices.values()] for n in range(3)),
    )


def _tally(written: Sequence[tuple[_Ints, Written]]) -> tuple[bytes, bytes, bytes]:
    """Return columns: series, how many points were stored (empty: one each), and how many not."""
    named = np.concatenate([series for series, _ in written])
    if not any(one.duplicates or one.rejected for _, one in written):
        return named.astype("<i4", copy=False).tobytes(), b"", b""
    series, offered = np.unique(named, return_counts=True)
    stored, rejected = np.zeros_like(offered), np.zeros_like(offered)
    for of, one in written:
        new = of if one.new is None else np.array(one.new, np.int32)
        np.add.at(stored, np.searchsorted(series, new), 1)
        bad = np.array([point.series for point in one.rejected], np.int32)
        np.add.at(rejected, np.searchsorted(series, bad), 1)
    columns = (series, stored, offered - stored - rejected)
    return tuple(column.astype("<i4").tobytes() for column in columns)  # type: ignore[return-value]  # three of three


def _added_up(rows: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    return {**_of_series(rows), **_of_devices(rows)}


def _of_series(rows: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    """Add up what rows of the log say of series, by hour."""
    columns: dict[str, list[Any]] = {"hours": [], "series": [], "stored": [], "duplicates": []}
    by_hour: dict[datetime, list[Row[Any]]] = {}
    for row in rows:
        by_hour.setdefault(row.hour, []).append(row)
    for hour, alike in by_hour.items():
        named = [np.frombuffer(row.series, "<i4") for row in alike]
        series, places = np.unique(np.concatenate(named), return_inverse=True)
        for name, absent in (("stored", 1), ("duplicates", 0)):
            counts = [
                np.frombuffer(count, "<i4") if (count := row._mapping[name]) else absent
                for row in alike
            ]
            each = [np.broadcast_to(c, s.shape) for c, s in zip(counts, named, strict=True)]
            # In floats, which are exact up to 2^53.
            sums = np.bincount(places, np.concatenate(each), len(series))
            columns[name] += sums.astype(np.int64).tolist()
        columns["series"] += series.tolist()
        columns["hours"] += [hour] * len(series)
    return columns


def _of_devices(rows: Sequence[Row[Any]]) -> dict[str, list[Any]]:
    """Join what rows of the log say of devices."""
    columns: dict[str, list[Any]] = {
        name: [one for row in rows for one in row._mapping[name]]
        for name in ("tenants", "devices", "quarantined", "gaps", "missing")
    }
    columns["of_hours"] = [row.hour for row in rows for _ in row.devices]
    return columns
