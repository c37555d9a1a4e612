"""What was refused, for the audit trail: each thing once a minute at most, with how often it was.

A refusal changes nothing, so no trigger sees it, and its transaction is rolled back. And whoever is
refused may ask again as often as they like: a flood must not fill the trail, nor cost a transaction
each. So refusals are noted in memory, and written by the clock: a process that is killed loses
those of its last second.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from libs.common.clock import Clock
from libs.common.db.transactions import Store, Transactions
from libs.common.errors import Unavailable
from libs.common.events.audit import AuditActor, AuditEntry, AuditRecorded
from libs.common.log import logger

ONCE_IN = timedelta(minutes=1)
MOST = 10_000
"""Refusals remembered. More at once come from an attack on a broad front, which the log tells."""

TenantsOf = Callable[[UUID], Awaitable[Sequence[UUID]]]

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """That somebody was refused something. `tenant_id` None: it concerns all tenants of the user."""

    tenant_id: UUID | None
    subject: UUID
    entry: AuditEntry


@dataclass(slots=True)
class _Counted:
    refusal: Refusal
    actor: AuditActor
    since: datetime
    """When it was written last; at first, when it was noted."""
    at: datetime
    is_written: bool = False
    unwritten: int = 1


class Refusals:
    """What one process refused. `tenants_of` says which tenants a user belongs to."""

    def __init__(
        self,
        service: str,
        transactions: Transactions[Any],
        clock: Clock,
        tenants_of: TenantsOf | None = None,
    ) -> None:
        self._service = service
        self._transactions = transactions
        self._clock = clock
        self._tenants_of = tenants_of
        self._counted: dict[tuple[UUID | None, UUID, str, str | None], _Counted] = {}

    def note(self, refusal: Refusal, actor: AuditActor) -> None:
        """Note a refusal; nothing is written yet. Of equal ones the latest actor is told."""
        now = self._clock.now()
        entry = refusal.entry
        key = (refusal.tenant_id, refusal.subject, entry.action, entry.resource_id)
        known = self._counted.get(key)
        if known is not None:
            known.unwritten += 1
            known.actor, known.at = actor, now
        elif len(self._counted) < MOST:
            self._counted[key] = _Counted(refusal, actor, now, now)
        else:
            _log.warning("a refusal is not recorded", action=entry.action)

    async def write(self) -> None:
        """Write what is new, and what came again since it was written a minute ago."""
        now = self._clock.now()
        for key, counted in list(self._counted.items()):
            is_over = now - counted.since >= ONCE_IN
            if counted.is_written and not is_over:
                continue
            if not counted.unwritten:
                del self._counted[key]
                continue
            count, counted.unwritten = counted.unwritten, 0
            counted.is_written, counted.since = True, now
            try:
                await self._write(counted, count)
            except Unavailable:
                counted.unwritten += count
                counted.is_written = False
                return

    async def finish(self) -> None:
        """Write all there is, as the process ends."""
        for counted in self._counted.values():
            counted.is_written = False
        await self.write()

    async def _write(self, counted: _Counted, count: int) -> None:
        refusal = counted.refusal
        entry = msgspec.structs.replace(
            refusal.entry, detail={**(refusal.entry.detail or {}), "count": count}
        )
        tenants: Sequence[UUID] = () if refusal.tenant_id is None else (refusal.tenant_id,)
        if refusal.tenant_id is None and self._tenants_of is not None:
            tenants = await self._tenants_of(refusal.subject)
        for tenant_id in tenants:
            store: Store
            async with self._transactions.begin(tenant_id) as store:
                store.emit(
                    AuditRecorded(
                        tenant_id=tenant_id,
                        at=counted.at,
                        service=self._service,
                        actor=counted.actor,
                        entries=[entry],
                    )
                )
