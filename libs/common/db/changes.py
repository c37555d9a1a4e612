"""What a transaction changed on somebody's behalf, taken out of its notes and said for the audit trail.

The tables' triggers note it (`audited` in `libs.common.db.ddl`), so that no use case can forget to.
"""

from uuid import UUID

import msgspec
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.acting import Acting
from libs.common.events.audit import AuditEntry, AuditRecorded

TENANT = "tenant"
"""What the trail calls a tenant itself."""
AT_ONCE = 200
"""Entries in one event."""


class Changes:
    """The notes of one service's transactions."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._take = text(
            f"DELETE FROM {service}.changes WHERE xid = pg_current_xact_id_if_assigned()"  # noqa: S608 - a schema's name, from the code
            " RETURNING tenant_id, seq, resource, resource_id, action, label,"
            " before::text AS before, after::text AS after, sec.iiot_now() AS at"
        )

    async def take(self, session: AsyncSession, caller: Acting) -> list[AuditRecorded]:
        """Return what the transaction changed so far, for each tenant in order, and forget it.

        What somebody changed in another tenant than their own stands in the trail of both.
        """
        rows = sorted((await session.execute(self._take)).all(), key=lambda row: row.seq)
        if not rows:
            return []
        entries: dict[UUID, list[AuditEntry]] = {}
        home = caller.tenant_id
        # A tenant's trail goes with it, and what else did is told by that.
        gone = {row.tenant_id for row in rows if (row.resource, row.action) == (TENANT, "deleted")}
        for row in rows:
            entry = _entry(row)
            if row.tenant_id in gone and row.resource != TENANT:
                continue
            if row.tenant_id not in gone:
                entries.setdefault(row.tenant_id, []).append(entry)
            if home is not None and row.tenant_id != home:
                entries.setdefault(home, []).append(_abroad(entry, row.tenant_id))
        return [
            AuditRecorded(
                tenant_id=tenant_id,
                at=rows[0].at,
                service=self._service,
                actor=caller.actor,
                entries=of_tenant[start : start + AT_ONCE],
            )
            for tenant_id, of_tenant in entries.items()
            for start in range(0, len(of_tenant), AT_ONCE)
        ]


def _entry(row: Row[tuple[object, ...]]) -> AuditEntry:
    return AuditEntry(
        action=f"{row.resource}.{row.action}",
        resource=row.resource,
        resource_id=row.resource_id,
        label=row.label,
        before=None if row.before is None else msgspec.json.decode(row.before),
        after=None if row.after is None else msgspec.json.decode(row.after),
    )


def _abroad(entry: AuditEntry, tenant_id: UUID) -> AuditEntry:
    """Return the entry as another tenant's trail has it: of what is in a tenant, not its values.

    They go when the tenant does; that it was opened, suspended and removed, and by whom, stays.
    """
    if entry.resource == TENANT:
        return entry
    return AuditEntry(
        action=entry.action,
        resource=entry.resource,
        resource_id=entry.resource_id,
        detail={"tenant_id": str(tenant_id)},
    )
