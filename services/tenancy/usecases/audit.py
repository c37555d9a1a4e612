"""What is done with the trail: it is added to, and read as a whole."""

from collections.abc import AsyncIterator
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.events.audit import AuditRecorded
from services.tenancy.domain.audit import Entry, Link, Wanted, chain
from services.tenancy.store.store import TenancyStore

AT_ONCE = 1_000
"""Entries in memory at a time."""


async def record(store: TenancyStore, recorded: AuditRecorded) -> None:
    """Add what happened to the end of the tenant's trail; of a tenant that is gone nothing is kept."""
    head = await store.trail.head()
    if head is None or not recorded.entries:
        return
    actor = recorded.actor
    entries = [
        Entry(
            seq=seq,
            at=recorded.at,
            service=recorded.service,
            action=entry.action,
            outcome=entry.outcome,
            resource=entry.resource,
            resource_id=entry.resource_id,
            label=entry.label,
            actor_kind=actor.kind,
            actor_id=actor.id,
            session_id=actor.session_id,
            address=actor.address,
            user_agent=actor.user_agent,
            request_id=actor.request_id,
            before=entry.before,
            after=entry.after,
            detail=entry.detail,
        )
        for seq, entry in enumerate(recorded.entries, start=head.seq + 1)
    ]
    await store.trail.append(chain(store.tenant_id, entries, head.hash))


async def pages(
    transactions: Transactions[TenancyStore], tenant_id: UUID, wanted: Wanted
) -> AsyncIterator[list[Link]]:
    """Give all entries that are wanted, newest first, a part at a time, each in a transaction of its own."""
    before: int | None = None
    while True:
        async with transactions.begin(tenant_id) as store:
            links = await store.trail.find(wanted, AT_ONCE, before)
        if links:
            yield links
        if len(links) < AT_ONCE:
            return
        before = links[-1].entry.seq
