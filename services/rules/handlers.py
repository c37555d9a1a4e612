"""The door through which events arrive: telemetry, changed rules, devices and tenants no more."""

from collections.abc import Sequence

from libs.common.bus.base import Bus, Subscription
from libs.common.bus.subscriptions import Subscriptions, listen
from libs.common.events.base import Message
from libs.common.events.ingest import DeviceDeleted, TelemetryReceived
from libs.common.events.rules import RuleChanged
from libs.common.events.tenancy import TenantDeleted, TenantQuotasSet
from services.rules.store.store import RulesStore
from services.rules.usecases import rules
from services.rules.usecases.evaluation import Evaluation

TELEMETRY = Subscription(
    "rules.telemetry", frozenset({TelemetryReceived.type}), sharded=True, batch=64
)

subscriptions = Subscriptions[RulesStore]("rules")


@subscriptions.on(DeviceDeleted)
async def on_device_deleted(event: DeviceDeleted, store: RulesStore) -> None:
    """Remove the device's rules."""
    await rules.drop_device(store, event.device_id, now=event.at)


@subscriptions.on(TenantQuotasSet)
async def on_quotas_set(event: TenantQuotasSet, store: RulesStore) -> None:
    """Keep what the tenant may have."""
    await store.quotas.note(event)


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: RulesStore) -> None:
    """Erase what is kept of the tenant; every worker forgets its rules."""
    await rules.drop_tenant(store, now=event.at)


def attach_evaluation(bus: Bus, evaluation: Evaluation) -> None:
    """Let telemetry be evaluated, by rules as they are at this moment.

    Telemetry carries many tenants, so its transactions are the evaluation's own.
    """

    async def on_telemetry(messages: Sequence[Message]) -> None:
        await evaluation.evaluate([TelemetryReceived.from_message(m) for m in messages])

    async def on_rule_changed(event: RuleChanged) -> None:
        await evaluation.refresh_rules([event.rule_id])

    bus.subscribe(TELEMETRY, on_telemetry)
    listen(bus, "rules.changes", {RuleChanged: on_rule_changed})
