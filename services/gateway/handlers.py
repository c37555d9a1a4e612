"""The events the gateway hears: who may no longer enter, and everything it streams out."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

import msgspec

from libs.common.bus.base import Bus, Mode, Subscription
from libs.common.bus.subscriptions import Subscriptions, listen
from libs.common.clock import Clock
from libs.common.events import alerting, ingest, tenancy
from libs.common.events.base import Event
from libs.common.events.gateway import SessionRevoked
from services.gateway.domain.live import AlertUpdate, DeviceUpdate
from services.gateway.domain.session import Ended
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.live import Live
from services.gateway.usecases.sessions import revoke_sessions

subscriptions = Subscriptions[GatewayStore]("gateway")
"""What ends sessions for good: done once, by one of the replicas."""

Gone = tenancy.UserDisabled | tenancy.UserDeleted | tenancy.MembershipRemoved

DEVICE_EVENTS: tuple[type[Event], ...] = (
    ingest.DeviceCreated,
    ingest.DeviceUpdated,
    ingest.DeviceDeleted,
    ingest.DeviceStatusChanged,
)
ALERT_EVENTS: tuple[type[Event], ...] = (
    alerting.AlertOpened,
    alerting.AlertSeverityRaised,
    alerting.AlertAcknowledged,
    alerting.AlertInvestigationStarted,
    alerting.AlertResolved,
    alerting.AlertNoted,
)
ENDED_KNOWN = timedelta(hours=12)
"""A replica that missed the event finds revoked sessions in the table; it needs them as long as
their access tokens last, and that is far shorter."""
_ENVELOPE = ("id", "tenant_id", "at", "alert_id", "device_id")


@subscriptions.on(tenancy.UserDisabled)
async def on_user_disabled(event: tenancy.UserDisabled, store: GatewayStore) -> None:
    """End what the user has open in the tenant."""
    await revoke_sessions(store, because=Ended.LEFT, at=event.at, user_id=event.user_id)


@subscriptions.on(tenancy.UserDeleted)
async def on_user_deleted(event: tenancy.UserDeleted, store: GatewayStore) -> None:
    """End what the user has open in the tenant."""
    await revoke_sessions(store, because=Ended.LEFT, at=event.at, user_id=event.user_id)


@subscriptions.on(tenancy.MembershipRemoved)
async def on_membership_removed(event: tenancy.MembershipRemoved, store: GatewayStore) -> None:
    """End what the user has open in the tenant."""
    await revoke_sessions(store, because=Ended.LEFT, at=event.at, user_id=event.user_id)


@subscriptions.on(tenancy.TenantDeleted)
async def on_tenant_deleted(event: tenancy.TenantDeleted, store: GatewayStore) -> None:
    """End everything in the tenant, and erase what ended long ago: when it is said again, the rest."""
    await revoke_sessions(store, because=Ended.TENANT_CLOSED, at=event.at)
    await store.sessions.forget_ended(event.at - ENDED_KNOWN)


@subscriptions.on(tenancy.TenantUpdated)
async def on_tenant_updated(event: tenancy.TenantUpdated, store: GatewayStore) -> None:
    """End everything in a tenant that was suspended."""
    if event.status != "active":
        await revoke_sessions(store, because=Ended.TENANT_CLOSED, at=event.at)


def listen_for_revocation(
    bus: Bus, callers: Callers, live: Live, clock: Clock, access_lifetime: timedelta
) -> None:
    """Let every replica know who may no longer call, and whose permissions changed.

    What it may have missed it makes up for by believing nothing it knew: everybody is looked up
    again, and live connections are opened anew.
    """

    def distrust() -> None:
        callers.forget_all()
        live.close_interrupted()

    async def on_session_revoked(event: SessionRevoked) -> None:
        callers.revoke(event.session_id, clock.now() + access_lifetime)

    async def on_user_changed(
        event: Gone | tenancy.UserEnabled | tenancy.MembershipChanged,
    ) -> None:
        callers.change(event.tenant_id, event.user_id)

    async def on_tenant_changed(
        event: tenancy.RoleChanged
        | tenancy.RoleDeleted
        | tenancy.TenantUpdated
        | tenancy.TenantDeleted,
    ) -> None:
        callers.change(event.tenant_id)

    listen(
        bus,
        "gateway.revocation",
        {
            SessionRevoked: on_session_revoked,
            tenancy.UserDisabled: on_user_changed,
            tenancy.UserDeleted: on_user_changed,
            tenancy.UserEnabled: on_user_changed,
            tenancy.MembershipChanged: on_user_changed,
            tenancy.MembershipRemoved: on_user_changed,
            tenancy.RoleChanged: on_tenant_changed,
            tenancy.RoleDeleted: on_tenant_changed,
            tenancy.TenantUpdated: on_tenant_changed,
            tenancy.TenantDeleted: on_tenant_changed,
        },
        on_gap=distrust,
    )


def stream_out(bus: Bus, live: Live) -> None:
    """Let every replica pass on to its own connections what happens."""
    bus.subscribe(
        Subscription(
            "gateway.telemetry",
            frozenset({ingest.TelemetryReceived.type}),
            mode=Mode.PER_REPLICA,
            sharded=True,
            batch=16,
            on_gap=live.close_interrupted,
        ),
        live.hear_telemetry,
    )
    listeners: dict[type[Event], Callable[[Event], Awaitable[None]]] = {}
    for event_class in DEVICE_EVENTS:
        listeners[event_class] = partial(_tell_device, live)
    for event_class in ALERT_EVENTS:
        listeners[event_class] = partial(_tell_alert, live)
    listen(bus, "gateway.live", listeners, on_gap=live.close_interrupted)


async def _tell_device(live: Live, event: Event) -> None:
    fields = msgspec.structs.asdict(event)
    live.tell(
        event.tenant_id,
        DeviceUpdate(_word(event), fields["device_id"], event.at, _rest(fields)),
    )


async def _tell_alert(live: Live, event: Event) -> None:
    fields = msgspec.structs.asdict(event)
    device_id: UUID | None = fields.get("device_id")
    live.tell(
        event.tenant_id,
        AlertUpdate(_word(event), fields["alert_id"], device_id, event.at, _rest(fields)),
    )


def _word(event: Event) -> str:
    """Return what happened: `opened` of `alert.opened.v1`."""
    return event.type.split(".")[1]


def _rest(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in _ENVELOPE}
