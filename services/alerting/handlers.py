"""The events alerting hears."""

from uuid import uuid5

from libs.common.bus.subscriptions import Subscriptions
from libs.common.db.erasure import erase_tenant
from libs.common.events.ingest import (
    DeviceAlertReported,
    DeviceCreated,
    DeviceDeleted,
    DeviceUpdated,
)
from libs.common.events.ml import AnomalyDetected
from libs.common.events.rules import RuleCleared, RuleTriggered
from libs.common.events.tenancy import (
    QuotaExceeded,
    QuotaRelieved,
    TenantDeleted,
    UserCreated,
    UserDeleted,
    UserUpdated,
)
from libs.common.places import follow_places
from services.alerting.domain.trigger import (
    clearing_of_device,
    clearing_of_quota,
    clearing_of_rule,
    trigger_of_anomaly,
    trigger_of_device,
    trigger_of_quota,
    trigger_of_rule,
)
from services.alerting.store.store import AlertingStore
from services.alerting.usecases import alerts

subscriptions = Subscriptions[AlertingStore]("alerting")
follow_places(subscriptions, "alerting")


@subscriptions.on(RuleTriggered)
async def on_rule_triggered(event: RuleTriggered, store: AlertingStore) -> None:
    """Open an alert, or fold the trigger into the one already open."""
    await alerts.raise_alert(store, trigger_of_rule(event), alert_id=uuid5(event.id, "alert"))


@subscriptions.on(RuleCleared)
async def on_rule_cleared(event: RuleCleared, store: AlertingStore) -> None:
    """Close the alert that the firing opened."""
    await alerts.clear(store, clearing_of_rule(event))


@subscriptions.on(AnomalyDetected)
async def on_anomaly_detected(event: AnomalyDetected, store: AlertingStore) -> None:
    """Open an alert, or fold the anomaly into the one already open."""
    await alerts.raise_alert(store, trigger_of_anomaly(event), alert_id=uuid5(event.id, "alert"))


@subscriptions.on(DeviceAlertReported)
async def on_device_alert_reported(event: DeviceAlertReported, store: AlertingStore) -> None:
    """Open or close an alert, as the device says of its alarm."""
    if event.active:
        await alerts.raise_alert(store, trigger_of_device(event), alert_id=uuid5(event.id, "alert"))
    else:
        await alerts.clear(store, clearing_of_device(event))


@subscriptions.on(QuotaExceeded)
async def on_quota_exceeded(event: QuotaExceeded, store: AlertingStore) -> None:
    """Open an alert for the tenant's people, or let the one that is open be worse."""
    await alerts.raise_alert(store, trigger_of_quota(event), alert_id=uuid5(event.id, "alert"))


@subscriptions.on(QuotaRelieved)
async def on_quota_relieved(event: QuotaRelieved, store: AlertingStore) -> None:
    """Close the alert that the quota opened."""
    await alerts.clear(store, clearing_of_quota(event))


@subscriptions.on(DeviceCreated)
async def on_device_created(event: DeviceCreated, store: AlertingStore) -> None:
    """Learn a device's name."""
    await store.names.learn("device", event.device_id, event.name, event.at)


@subscriptions.on(DeviceUpdated)
async def on_device_updated(event: DeviceUpdated, store: AlertingStore) -> None:
    """Learn a device's new name."""
    await store.names.learn("device", event.device_id, event.name, event.at)


@subscriptions.on(DeviceDeleted)
async def on_device_deleted(event: DeviceDeleted, store: AlertingStore) -> None:
    """Close what is open about the device; its alerts keep its name."""
    await store.names.mark_gone("device", event.device_id, event.at)
    await alerts.close_all_of_device(store, event.device_id, at=event.at)


@subscriptions.on(UserCreated)
async def on_user_created(event: UserCreated, store: AlertingStore) -> None:
    """Learn a user's name, to say who did what."""
    await store.names.learn("user", event.user_id, event.name, event.at)


@subscriptions.on(UserUpdated)
async def on_user_updated(event: UserUpdated, store: AlertingStore) -> None:
    """Learn a user's new name."""
    await store.names.learn("user", event.user_id, event.name, event.at)


@subscriptions.on(UserDeleted)
async def on_user_deleted(event: UserDeleted, store: AlertingStore) -> None:
    """Forget a user's name; what they did stays told of, by id."""
    await store.names.erase("user", event.user_id, event.at)


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: AlertingStore) -> None:
    """Erase whatever is kept of the tenant."""
    await erase_tenant(store, "alerting")
