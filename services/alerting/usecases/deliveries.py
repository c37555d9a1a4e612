"""How one notification gets to where it shall go. Between the two steps lies the network."""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from libs.common.events.alerting import NotificationDelivered, NotificationFailed
from services.alerting.domain.alert import Alert
from services.alerting.domain.channel import Channel
from services.alerting.domain.notice import Notice, NoticeKind
from services.alerting.domain.notification import (
    MOST_ATTEMPTS,
    Notification,
    notice_of,
    reason_to_skip,
    wait_before,
)
from services.alerting.domain.outcome import Delivered, Gone, Outcome, Refused, Retry
from services.alerting.store.notifications import Claim
from services.alerting.store.store import AlertingStore


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What is to be sent now, and where."""

    notification: Notification
    channel: Channel
    notice: Notice


async def prepare(store: AlertingStore, claim: Claim) -> Dispatch | None:
    """Look once more whether a claimed notification must go; None if there is nothing to send."""
    notification = await store.notifications.claimed(claim)
    if notification is None:
        return None
    channel = await store.channels.find(notification.channel_id)
    alert = await store.alerts.get(notification.alert_id)
    reason = reason_to_skip(notification.kind, channel, alert)
    if reason is not None or channel is None:
        await store.notifications.supersede(claim, reason or "")
        return None
    notice = notice_of(
        alert,
        notification_id=notification.id,
        kind=notification.kind,
        actor=_actor(alert) if notification.kind is NoticeKind.RESOLVED else None,
    )
    return Dispatch(notification, channel, notice)


async def record(
    store: AlertingStore,
    claim: Claim,
    notification: Notification,
    outcome: Outcome,
    *,
    at: datetime,
    jitter: float,
) -> bool:
    """Note how an attempt ended. False: the lease was lost meanwhile, and another has the word."""
    match outcome:
        case Delivered(receipt):
            noted = await store.notifications.deliver(claim, receipt)
            if noted:
                store.emit(
                    NotificationDelivered(
                        tenant_id=store.tenant_id,
                        at=at,
                        notification_id=notification.id,
                        alert_id=notification.alert_id,
                        channel_id=notification.channel_id,
                        kind=notification.kind.value,
                        attempts=notification.attempts,
                    )
                )
        case Retry(reason, after) if notification.attempts < MOST_ATTEMPTS:
            wait = wait_before(notification.attempts, asked=after, jitter=jitter)
            noted = await store.notifications.postpone(claim, wait, reason)
        case Gone(reason):
            await _switch_off(store, notification.channel_id, reason, at=at)
            noted = await _give_up(store, claim, notification, reason, at=at)
        case Retry(reason, _) | Refused(reason):
            noted = await _give_up(store, claim, notification, reason, at=at)
    return noted


async def _give_up(
    store: AlertingStore, claim: Claim, notification: Notification, reason: str, *, at: datetime
) -> bool:
    noted = await store.notifications.give_up(claim, reason)
    if noted:
        store.emit(
            NotificationFailed(
                tenant_id=store.tenant_id,
                at=at,
                notification_id=notification.id,
                alert_id=notification.alert_id,
                channel_id=notification.channel_id,
                kind=notification.kind.value,
                attempts=notification.attempts,
                reason=reason,
            )
        )
    return noted


async def _switch_off(store: AlertingStore, channel_id: UUID, reason: str, *, at: datetime) -> None:
    """The receiver wants nothing more: send it nothing until a person says otherwise."""
    channel = await store.channels.find(channel_id, lock=True)
    if channel is not None and channel.is_enabled:
        await store.channels.update(
            replace(
                channel,
                is_enabled=False,
                disabled_reason=f"the receiver answered {reason}",
                updated_at=at,
                version=channel.version + 1,
            )
        )


def _actor(alert: Alert) -> str | None:
    if alert.resolved_by is None:
        return None
    return alert.resolved_by_name or "a user"
