"""How a tenant says where its notices go."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from libs.common.errors import Conflict, invalid
from libs.common.severity import Severity
from services.alerting.adapters.courier import Courier
from services.alerting.domain.channel import MOST_CHANNELS, Channel, Email, Target, Webhook
from services.alerting.domain.notice import Notice, NoticeKind
from services.alerting.domain.outcome import Outcome
from services.alerting.store.store import AlertingStore, AlertingTransactions


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A channel as someone wants it. Of a webhook's target the secret is not part of the wish."""

    name: str
    target: Target
    is_enabled: bool
    min_severity: Severity


async def add(
    store: AlertingStore, courier: Courier, channel_id: UUID, wish: Wish, *, at: datetime
) -> Channel:
    """Set up a channel. Raises Invalid if nothing may be sent there, Conflict if the name is taken."""
    # First of all: it may ask the DNS, and nothing is locked meanwhile.
    await courier.check(wish.target)
    if await store.channels.count() >= MOST_CHANNELS:
        raise Conflict(f"a tenant has {MOST_CHANNELS} notification channels at most")
    channel = Channel(
        id=channel_id,
        tenant_id=store.tenant_id,
        name=wish.name,
        target=wish.target,
        is_enabled=wish.is_enabled,
        min_severity=wish.min_severity,
        created_at=at,
        updated_at=at,
    )
    await store.channels.add(channel)
    return channel


async def change(
    store: AlertingStore, courier: Courier, channel_id: UUID, wish: Wish, *, at: datetime
) -> Channel:
    """Change a channel; its kind and a webhook's secret stay. Raises NotFound, Invalid, Conflict."""
    await courier.check(wish.target)
    present = await store.channels.get(channel_id, lock=True)
    target = wish.target
    match present.target, target:
        case Webhook(secret=secret), Webhook():
            target = replace(target, secret=secret)
        case Email(), Email():
            pass
        case _:
            raise invalid("#/kind", f"this is a channel of kind {present.kind}")
    changed = replace(
        present,
        name=wish.name,
        target=target,
        is_enabled=wish.is_enabled,
        disabled_reason="" if wish.is_enabled else present.disabled_reason,
        min_severity=wish.min_severity,
        updated_at=at,
        version=present.version + 1,
    )
    await store.channels.update(changed)
    return changed


async def remove(store: AlertingStore, channel_id: UUID) -> None:
    """Remove a channel; what waits for it goes nowhere. Raises NotFound."""
    await store.channels.remove(channel_id)
    await store.notifications.supersede_all_to(channel_id, "the channel was removed")


async def try_out(
    transactions: AlertingTransactions,
    courier: Courier,
    tenant_id: UUID,
    channel_id: UUID,
    *,
    notification_id: UUID,
    now: datetime,
) -> Outcome:
    """Send a test notice by the same way as a real one, once, and say how it went.

    Raises NotFound. No transaction is open while the other side takes its time.
    """
    async with transactions.begin(tenant_id) as store:
        channel = await store.channels.get(channel_id)
    notice = Notice(
        notification_id=notification_id,
        alert_id=notification_id,
        tenant_id=tenant_id,
        kind=NoticeKind.TEST,
        severity=Severity.INFO,
        title=f"Test of {channel.name}",
        message="This is a test. Nothing has happened; notices of alerts will come this way.",
        url="/alerts",
        opened_at=now,
        at=now,
    )
    return await courier.send(channel, notice, now=now)
