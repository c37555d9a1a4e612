"""What becomes of alerts: opened, taken on, closed."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.common.errors import PreconditionFailed
from libs.common.events.alerting import (
    AlertAcknowledged,
    AlertInvestigationStarted,
    AlertNoted,
    AlertOpened,
    AlertResolved,
    AlertSeverityRaised,
)
from services.alerting.domain import alert as decide
from services.alerting.domain.alert import Alert, HistoryLine, How, Note, What
from services.alerting.domain.notice import NoticeKind
from services.alerting.domain.trigger import (
    MOST_DEVICE_ALARMS,
    Clearing,
    SourceKind,
    Trigger,
    is_known,
    is_over,
    too_many_alarms,
)
from services.alerting.store.store import AlertingStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Who does something to an alert, when, and what they say to it.

    `version` is the alert as they saw it; None: they do not mind what has happened since.
    """

    by: UUID
    at: datetime
    note_id: UUID
    note: str = ""
    version: int | None = None


async def raise_alert(store: AlertingStore, trigger: Trigger, *, alert_id: UUID) -> None:
    """Open an alert of this id, or fold the trigger into the one that is open.

    What was over before we heard of it leaves an alert that is resolved, and tells nobody. A
    device's own alarm, when too many of it are open, goes into one alert for all of these.
    """
    await store.firings.take_turn()
    standing = await store.alerts.standing(trigger)
    if is_known(trigger, standing.record):
        return
    if (
        standing.present is None
        and trigger.source_kind is SourceKind.DEVICE
        and not is_over(trigger, standing.record)
        and await store.alerts.count_open_alarms(trigger.source_id) >= MOST_DEVICE_ALARMS
    ):
        trigger = too_many_alarms(trigger)
        standing = await store.alerts.standing(trigger)
    if standing.present is not None:
        await _fold(store, standing.present, trigger)
        return
    opened = decide.open_alert(trigger, alert_id=alert_id, tenant_id=store.tenant_id)
    await store.alerts.add(opened, _line(opened, What.OPENED, at=trigger.at, detail=opened.message))
    if trigger.firing is not None:
        await store.firings.note_trigger(trigger.firing, opened.id, trigger.at)
    store.emit(
        AlertOpened(
            tenant_id=store.tenant_id,
            at=trigger.at,
            alert_id=opened.id,
            severity=opened.severity,
            title=opened.title,
            message=opened.message,
            source_kind=opened.source_kind.value,
            source_id=opened.source_id,
            device_id=opened.device_id,
            metric=opened.metric,
            value=opened.value,
        )
    )
    if is_over(trigger, standing.record):
        await _close(store, opened, How.CLEARED, at=trigger.at, detail="over before it was heard")
    elif standing.device_is_gone:
        await _close(store, opened, How.DEVICE_DELETED, at=trigger.at)
    else:
        await _tell_of_opening(store, opened)


async def clear(store: AlertingStore, clearing: Clearing) -> None:
    """Close the alert that the firing went into, acknowledged or not, if nothing else keeps it open.

    A firing not heard of yet is remembered, so that its alert will not stay open for ever.
    """
    await store.firings.take_turn()
    record = await store.firings.note_clearing(clearing.firing, clearing.at)
    if record.alert_id is None:
        return
    alert = await store.alerts.get(record.alert_id, lock=True)
    if alert.is_open and not await store.firings.is_any_on(alert.id):
        await _close(store, alert, How.CLEARED, at=clearing.at, detail=clearing.detail)


async def close_all_of_device(store: AlertingStore, device_id: UUID, *, at: datetime) -> None:
    """Close whatever is open about a device that is no more."""
    await store.firings.take_turn()
    for key in await store.alerts.open_keys_of_device(device_id):
        alert = await store.alerts.find_open(key)
        if alert is not None:
            await store.firings.clear_all_of(alert.id, at)
            await _close(store, alert, How.DEVICE_DELETED, at=at)


async def acknowledge(store: AlertingStore, alert_id: UUID, act: Act) -> Alert:
    """Let someone take an alert on. Raises NotFound, WrongState, PreconditionFailed."""
    alert = await _seen(store, alert_id, act)
    changed = decide.acknowledge(alert, by=act.by, at=act.at)
    if changed is not alert:
        line = _line(changed, What.ACKNOWLEDGED, at=act.at, by=act.by, detail=act.note)
        await store.alerts.update(changed, line)
        store.emit(
            AlertAcknowledged(tenant_id=store.tenant_id, at=act.at, alert_id=alert_id, by=act.by)
        )
    await _note(store, alert_id, act)
    return await store.alerts.get(alert_id)


async def investigate(store: AlertingStore, alert_id: UUID, act: Act) -> Alert:
    """Let someone look for the cause. Raises NotFound, WrongState, PreconditionFailed."""
    alert = await _seen(store, alert_id, act)
    changed = decide.investigate(alert, by=act.by, at=act.at)
    if changed is not alert:
        line = _line(changed, What.INVESTIGATION_STARTED, at=act.at, by=act.by, detail=act.note)
        await store.alerts.update(changed, line)
        store.emit(
            AlertInvestigationStarted(
                tenant_id=store.tenant_id, at=act.at, alert_id=alert_id, by=act.by
            )
        )
    await _note(store, alert_id, act)
    return await store.alerts.get(alert_id)


async def resolve(store: AlertingStore, alert_id: UUID, act: Act) -> Alert:
    """Let someone close an alert. Raises NotFound, WrongState, PreconditionFailed."""
    alert = await _seen(store, alert_id, act)
    await _close(store, alert, How.BY_HAND, by=act.by, at=act.at, detail=act.note)
    await _note(store, alert_id, act)
    return await store.alerts.get(alert_id)


async def add_note(store: AlertingStore, alert_id: UUID, act: Act) -> None:
    """Write a note to an alert, open or not. Raises NotFound."""
    await store.alerts.get(alert_id)
    await _note(store, alert_id, act)


async def _fold(store: AlertingStore, present: Alert, trigger: Trigger) -> None:
    folded = decide.fold(present, trigger)
    is_worse = folded.severity is not present.severity
    line = _line(folded, What.SEVERITY_RAISED, at=trigger.at, detail=folded.message)
    await store.alerts.update(folded, line if is_worse else None)
    if trigger.firing is not None:
        await store.firings.note_trigger(trigger.firing, folded.id, trigger.at)
    if not is_worse:
        return
    store.emit(
        AlertSeverityRaised(
            tenant_id=store.tenant_id,
            at=trigger.at,
            alert_id=folded.id,
            previous=present.severity,
            severity=folded.severity,
        )
    )
    # Channels that did not carry it before may now; who was told already is not told twice.
    await _tell_of_opening(store, folded)


async def _tell_of_opening(store: AlertingStore, alert: Alert) -> None:
    channels = [c for c in await store.channels.enabled() if c.carries(alert.severity)]
    await store.notifications.add(alert.id, channels, NoticeKind.OPENED)


async def _close(
    store: AlertingStore,
    alert: Alert,
    how: How,
    *,
    at: datetime,
    by: UUID | None = None,
    detail: str = "",
) -> None:
    closed = decide.resolve(alert, how=how, by=by, at=at)
    line = _line(closed, What.RESOLVED, at=at, by=by, detail=detail or how.value)
    await store.alerts.update(closed, line)
    store.emit(
        AlertResolved(tenant_id=store.tenant_id, at=at, alert_id=alert.id, how=how.value, by=by)
    )
    await store.notifications.follow_up(alert.id, NoticeKind.RESOLVED)


async def _seen(store: AlertingStore, alert_id: UUID, act: Act) -> Alert:
    alert = await store.alerts.get(alert_id, lock=True)
    if act.version is not None and act.version != alert.version:
        raise PreconditionFailed(f"the alert is at version {alert.version} by now")
    return alert


async def _note(store: AlertingStore, alert_id: UUID, act: Act) -> None:
    if not act.note:
        return
    await store.alerts.add_note(alert_id, Note(id=act.note_id, at=act.at, by=act.by, text=act.note))
    store.emit(
        AlertNoted(
            tenant_id=store.tenant_id,
            at=act.at,
            alert_id=alert_id,
            note_id=act.note_id,
            by=act.by,
        )
    )


def _line(
    alert: Alert, what: What, *, at: datetime, detail: str, by: UUID | None = None
) -> HistoryLine:
    return HistoryLine(
        what=what, at=at, state=alert.state, severity=alert.severity, by=by, detail=detail
    )
