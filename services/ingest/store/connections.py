"""Which endpoint holds which device's connection, of all tenants at once; and the endpoints' leases.

An endpoint is a process that devices connect to. It holds a lease by PostgreSQL's clock and renews
it; whose lease has ended is gone for good, and whoever finds it notes that its devices are offline.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from uuid import UUID

from sqlalchemy import TextClause, text

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Joint, JointTransactions
from services.ingest.domain.device import Status
from services.ingest.domain.presence import Noted

DeviceKey = tuple[UUID, UUID]
"""Tenant and device."""

_OPEN = text(
    "INSERT INTO ingest.endpoints (id, opened_at, expires_at)"
    " SELECT :id, now, now + cast(:lease AS interval) FROM (SELECT sec.iiot_now()) AS clock(now)"
)

_RENEW = text(
    "UPDATE ingest.endpoints SET expires_at = (SELECT sec.iiot_now()) + cast(:lease AS interval)"
    " WHERE id = :id AND expires_at > (SELECT sec.iiot_now())"
)

_EXPIRE = text("UPDATE ingest.endpoints SET expires_at = (SELECT sec.iiot_now()) WHERE id = :id")

# Who has not held a lease of its own for as long as one lasts may have been away with all others:
# it leaves them that long to say that they are still there.
_EXPIRED = text(
    """
    SELECT e.id FROM ingest.endpoints e, ingest.endpoints own
    WHERE own.id = :own AND own.opened_at <= (SELECT sec.iiot_now()) - cast(:lease AS interval)
      AND e.expires_at <= (SELECT sec.iiot_now())
    ORDER BY e.expires_at
    """
)

_AT = text("SELECT tenant_id, id FROM ingest.devices WHERE endpoint_id = :endpoint LIMIT :most")

# Shared among an endpoint's own writes; whoever clears up after it needs the row for itself.
_HOLDS = text(
    "SELECT id FROM ingest.endpoints WHERE id = :id AND expires_at > (SELECT sec.iiot_now())"
    " FOR KEY SHARE"
)

_CLEAR_UP = text(
    "SELECT id FROM ingest.endpoints WHERE id = :id AND expires_at <= (SELECT sec.iiot_now())"
    " FOR UPDATE SKIP LOCKED"
)

_NOTED = text(
    """
    SELECT d.tenant_id, d.id, d.status, d.status_reason, d.status_at, d.endpoint_id, d.connected_at
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[])) AS w(tenant_id, id)
    JOIN ingest.devices d ON d.tenant_id = w.tenant_id AND d.id = w.id AND d.deleted_at IS NULL
    ORDER BY d.tenant_id, d.id FOR NO KEY UPDATE OF d
    """
)

_SAVE = text(
    """
    UPDATE ingest.devices d
    SET status = w.status, status_reason = w.reason, status_at = w.status_at,
      endpoint_id = w.endpoint_id, connected_at = w.connected_at
    FROM unnest(cast(:tenants AS uuid[]), cast(:ids AS uuid[]), cast(:statuses AS text[]),
                cast(:reasons AS text[]), cast(:status_ats AS timestamptz[]),
                cast(:endpoints AS uuid[]), cast(:connected_ats AS timestamptz[]))
      AS w(tenant_id, id, status, reason, status_at, endpoint_id, connected_at)
    WHERE d.tenant_id = w.tenant_id AND d.id = w.id
    """
)


class Noting(Joint):
    """An open transaction of several tenants, in which it is noted who came and went."""

    async def holds(self, endpoint_id: UUID) -> bool:
        """Whether the endpoint has its lease; nobody clears up after it until the transaction ends."""
        rows = await self.connection.execute(_HOLDS, {"id": endpoint_id})
        return bool(rows.all())

    async def clears_up(self, endpoint_id: UUID) -> bool:
        """Whether the endpoint's lease has ended, and nobody else clears up after it now."""
        rows = await self.connection.execute(_CLEAR_UP, {"id": endpoint_id})
        return bool(rows.all())

    async def forget(self, endpoint_id: UUID) -> None:
        """Remove an endpoint that nothing is connected to."""
        await self.connection.execute(
            text("DELETE FROM ingest.endpoints WHERE id = :id"), {"id": endpoint_id}
        )

    async def noted(self, devices: Collection[DeviceKey]) -> dict[DeviceKey, Noted]:
        """Return what is noted of those of the devices that there are, locked."""
        rows = await self.connection.execute(_NOTED, _keys(devices))
        return {
            (row.tenant_id, row.id): Noted(
                Status(row.status),
                row.status_reason,
                row.status_at,
                row.endpoint_id,
                row.connected_at,
            )
            for row in rows
        }

    async def save(self, changed: Mapping[DeviceKey, Noted]) -> None:
        """Note something else of devices that are locked."""
        await self.connection.execute(
            _SAVE,
            {
                **_keys(changed),
                "statuses": [noted.status.value for noted in changed.values()],
                "reasons": [noted.reason for noted in changed.values()],
                "status_ats": [noted.status_at for noted in changed.values()],
                "endpoints": [noted.endpoint_id for noted in changed.values()],
                "connected_ats": [noted.connected_at for noted in changed.values()],
            },
        )


class Connections(JointTransactions[Noting]):
    """Opens notings, keeps leases, and finds whose has ended."""

    def __init__(
        self, database: Database, engine: Database, outbox: Outbox, lease: timedelta
    ) -> None:
        super().__init__(database, outbox, Noting)
        self._engine = engine
        self._lease = lease

    async def open(self, endpoint_id: UUID) -> None:
        """Take a lease."""
        await self._of_no_tenant(_OPEN, {"id": endpoint_id, "lease": self._lease})

    async def renew(self, endpoint_id: UUID) -> bool:
        """Renew a lease; False if it has ended, which is final."""
        return await self._of_no_tenant(_RENEW, {"id": endpoint_id, "lease": self._lease}) == 1

    async def expire(self, endpoint_id: UUID) -> None:
        """End a lease now."""
        await self._of_no_tenant(_EXPIRE, {"id": endpoint_id})

    async def expired(self, own: UUID) -> list[UUID]:
        """Return the endpoints whose lease has ended; none while one's own is younger than a lease."""
        async with self.begin(()) as noting:
            rows = await noting.connection.execute(_EXPIRED, {"own": own, "lease": self._lease})
            return [row.id for row in rows]

    async def at(self, endpoint_id: UUID, most: int) -> list[DeviceKey]:
        """Return up to `most` devices, of all tenants, whose connection the endpoint holds."""
        async with self._engine.connection() as connection:
            rows = await connection.execute(_AT, {"endpoint": endpoint_id, "most": most})
            return [(row.tenant_id, row.id) for row in rows]

    async def _of_no_tenant(self, statement: TextClause, values: Mapping[str, object]) -> int:
        async with self.begin(()) as noting:
            return (await noting.connection.execute(statement, values)).rowcount


def _keys(devices: Iterable[DeviceKey]) -> dict[str, list[UUID]]:
    keys = list(devices)
    return {"tenants": [tenant for tenant, _ in keys], "ids": [device for _, device in keys]}
