"""What was last heard of devices, of all tenants at once; and who has been silent for too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import TextClause, text

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Joint, JointTransactions
from services.ingest.store.connections import DeviceKey

# Of a device that holds a connection, being there is the connection's business.
_WRITE = text(
    """
    WITH heard AS (
      SELECT * FROM unnest(
        cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:seen_ats AS timestamptz[]),
        cast(:protocols AS text[]), cast(:formats AS text[]), cast(:silences AS interval[]))
      AS h(tenant_id, device_id, seen_at, protocol, payload_format, silence)
    ), locked AS MATERIALIZED (
      SELECT c.tenant_id, c.device_id FROM ingest.contacts c
      JOIN heard h ON h.tenant_id = c.tenant_id AND h.device_id = c.device_id
      ORDER BY c.tenant_id, c.device_id FOR NO KEY UPDATE OF c
    )
    UPDATE ingest.contacts c
    SET seen_at = greatest(c.seen_at, h.seen_at), protocol = coalesce(h.protocol, c.protocol),
      payload_format = coalesce(h.payload_format, c.payload_format),
      offline_due_at = CASE WHEN d.endpoint_id IS NULL THEN (SELECT sec.iiot_now()) + h.silence END
    FROM locked l
    JOIN heard h ON h.tenant_id = l.tenant_id AND h.device_id = l.device_id
    JOIN ingest.devices d ON d.tenant_id = l.tenant_id AND d.id = l.device_id
    WHERE c.tenant_id = l.tenant_id AND c.device_id = l.device_id AND d.deleted_at IS NULL
    RETURNING c.tenant_id, c.device_id,
      d.endpoint_id IS NULL AND d.status <> 'online'
        AND (d.status_at IS NULL OR d.status_at < h.seen_at) AS is_back
    """
)

_LOCK = """
    WITH asked AS (
      SELECT * FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]),
        cast(:reasons AS text[]), cast(:ats AS timestamptz[])) AS a(tenant_id, id, reason, at)
    ), locked AS MATERIALIZED (
      SELECT d.tenant_id, d.id FROM ingest.devices d
      JOIN asked a ON a.tenant_id = d.tenant_id AND a.id = d.id
      ORDER BY d.tenant_id, d.id FOR NO KEY UPDATE OF d
    )
"""

_COME_BACK = text(
    _LOCK  # noqa: S608 - both parts are our own
    + """
    UPDATE ingest.devices d SET status = 'online', status_reason = a.reason, status_at = a.at
    FROM locked l JOIN asked a ON a.tenant_id = l.tenant_id AND a.id = l.id
    WHERE d.tenant_id = l.tenant_id AND d.id = l.id AND d.endpoint_id IS NULL
      AND d.status <> 'online' AND d.deleted_at IS NULL
      AND (d.status_at IS NULL OR d.status_at < a.at)
    RETURNING d.tenant_id, d.id, d.status_reason, d.status_at
    """
)

_FALL_SILENT = text(
    _LOCK  # noqa: S608 - both parts are our own
    + """
    UPDATE ingest.devices d SET status = 'offline', status_reason = a.reason, status_at = a.at
    FROM locked l JOIN asked a ON a.tenant_id = l.tenant_id AND a.id = l.id
    WHERE d.tenant_id = l.tenant_id AND d.id = l.id AND d.endpoint_id IS NULL
      AND d.status = 'online' AND d.deleted_at IS NULL
    RETURNING d.tenant_id, d.id, d.status_reason, d.status_at
    """
)

_DUE = text(
    "SELECT tenant_id, device_id FROM ingest.contacts"
    " WHERE offline_due_at <= (SELECT sec.iiot_now()) ORDER BY offline_due_at LIMIT :most"
)

_TAKE_DUE = text(
    """
    WITH locked AS MATERIALIZED (
      SELECT c.tenant_id, c.device_id FROM ingest.contacts c
      JOIN unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[])) AS a(tenant_id, id)
        ON a.tenant_id = c.tenant_id AND a.id = c.device_id
      WHERE c.offline_due_at <= (SELECT sec.iiot_now())
      ORDER BY c.tenant_id, c.device_id FOR NO KEY UPDATE OF c SKIP LOCKED
    )
    UPDATE ingest.contacts c SET offline_due_at = NULL FROM locked l
    WHERE c.tenant_id = l.tenant_id AND c.device_id = l.device_id
    RETURNING c.tenant_id, c.device_id, c.seen_at, (SELECT sec.iiot_now()) AS now
    """
)


@dataclass(frozen=True, slots=True)
class Heard:
    """A device that spoke."""

    tenant_id: UUID
    device_id: UUID
    seen_at: datetime
    protocol: str | None
    payload_format: str | None
    silence: timedelta
    """After how long without a word it counts as offline, if it holds no connection."""


@dataclass(frozen=True, slots=True)
class Turned:
    """A device whose status is another now."""

    tenant_id: UUID
    device_id: UUID
    reason: str
    at: datetime


class Hearing(Joint):
    """An open transaction of several tenants, in which it is noted who was heard and who was not."""

    async def write(self, heard: Sequence[Heard]) -> list[Turned]:
        """Note who was heard; return who is online by that."""
        rows = await self.connection.execute(
            _WRITE,
            {
                "tenants": [h.tenant_id for h in heard],
                "ids": [h.device_id for h in heard],
                "seen_ats": [h.seen_at for h in heard],
                "protocols": [h.protocol for h in heard],
                "formats": [h.payload_format for h in heard],
                "silences": [h.silence for h in heard],
            },
        )
        back = {(row.tenant_id, row.device_id) for row in rows if row.is_back}
        return await self._turn(
            _COME_BACK,
            [
                Turned(h.tenant_id, h.device_id, f"heard by {h.protocol}", h.seen_at)
                for h in heard
                if (h.tenant_id, h.device_id) in back
            ],
        )

    async def take_due(self, devices: Sequence[DeviceKey]) -> list[Turned]:
        """Note that those of the devices are offline that have been silent for too long."""
        rows = await self.connection.execute(
            _TAKE_DUE,
            {"tenants": [tenant for tenant, _ in devices], "ids": [d for _, d in devices]},
        )
        return await self._turn(
            _FALL_SILENT,
            [
                Turned(
                    row.tenant_id,
                    row.device_id,
                    f"silent for {round((row.now - row.seen_at).total_seconds())} s",
                    row.now,
                )
                for row in rows
            ],
        )

    async def _turn(self, statement: TextClause, turned: Sequence[Turned]) -> list[Turned]:
        if not turned:
            return []
        rows = await self.connection.execute(
            statement,
            {
                "tenants": [t.tenant_id for t in turned],
                "ids": [t.device_id for t in turned],
                "reasons": [t.reason for t in turned],
                "ats": [t.at for t in turned],
            },
        )
        return [Turned(r.tenant_id, r.id, r.status_reason, r.status_at) for r in rows]


class Hearings(JointTransactions[Hearing]):
    """Opens hearings, and finds whose silence is due."""

    def __init__(self, database: Database, engine: Database, outbox: Outbox) -> None:
        super().__init__(database, outbox, Hearing)
        self._engine = engine

    async def due(self, most: int) -> list[DeviceKey]:
        """Return up to `most` devices, of all tenants, that may have been silent for too long."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(_DUE, {"most": most})
            return [(row.tenant_id, row.device_id) for row in rows]
