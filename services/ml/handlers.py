"""The door through which events arrive: telemetry, changed models, devices and tenants no more."""

from collections.abc import Sequence

from libs.common.bus.base import Bus, Subscription
from libs.common.bus.subscriptions import Subscriptions, listen
from libs.common.events.base import Message
from libs.common.events.ingest import DeviceDeleted, TelemetryReceived
from libs.common.events.ml import ModelChanged
from libs.common.events.tenancy import TenantDeleted
from services.ml.store.store import MlStore
from services.ml.usecases import models
from services.ml.usecases.scoring import Scoring

TELEMETRY = Subscription(
    "ml.telemetry", frozenset({TelemetryReceived.type}), sharded=True, batch=64
)

subscriptions = Subscriptions[MlStore]("ml")


@subscriptions.on(DeviceDeleted)
async def on_device_deleted(event: DeviceDeleted, store: MlStore) -> None:
    """Remove the device's models."""
    await models.drop_device(store, event.device_id, now=event.at)


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: MlStore) -> None:
    """Erase what is kept of the tenant; every worker forgets its models."""
    await models.drop_tenant(store, now=event.at)


def attach_scoring(bus: Bus, scoring: Scoring) -> None:
    """Let telemetry be scored, by models as they are at this moment.

    Telemetry carries many tenants, so its transactions are the scoring's own.
    """

    async def on_telemetry(messages: Sequence[Message]) -> None:
        await scoring.score([TelemetryReceived.from_message(m) for m in messages])

    async def on_model_changed(event: ModelChanged) -> None:
        await scoring.refresh_models([event.model_id])

    bus.subscribe(TELEMETRY, on_telemetry)
    listen(bus, "ml.changes", {ModelChanged: on_model_changed})
