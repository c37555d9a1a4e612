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
from libs.common.events.gateway import CorsOriginsChanged, RateLimitsChanged, SessionRevoked
from services.gateway.domain.live import AlertUpdate, DeviceUpdate
from services.gateway.domain.session import Ended
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.api_calls import ApiCalls
from services.gateway.usecases.api_keys import ApiKeys
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


@subscriptions.on(tenancy.UserPasswordChanged)
async def on_password_changed(event: tenancy.UserPasswordChanged, store: GatewayStore) -> None:
    """End what the user has open or begun in the tenant, but for where they changed it."""
    # Who showed the former password must not bring that login to its end.
    await store.pending_logins.forget(user_id=event.user_id)
    await revoke_sessions(
        store,
        because=Ended.PASSWORD_CHANGED,
        at=event.at,
        user_id=event.user_id,
        besides=event.spared_session_id,
    )


@subscriptions.on(tenancy.MembershipRemoved)
async def on_membership_removed(event: tenancy.MembershipRemoved, store: GatewayStore) -> None:
    """End what the user has open in the tenant."""
    await revoke_sessions(store, because=Ended.LEFT, at=event.at, user_id=event.user_id)


@subscriptions.on(tenancy.TenantDeleted)
async def on_tenant_deleted(event: tenancy.TenantDeleted, store: GatewayStore) -> None:
    """End everything in the tenant, and erase what ended long ago: when it is said again, the rest."""
    await revoke_sessions(store, because=Ended.TENANT_CLOSED, at=event.at)
    await store.pending_logins.forget()
    await store.sessions.forget_ended(event.at - ENDED_KNOWN)
    await store.rate_limits.remove_all()
    await store.cors_origins.replace([], event.at)


@subscriptions.on(tenancy.TenantUpdated)
async def on_tenant_updated(event: tenancy.TenantUpdated, store: GatewayStore) -> None:
    """End everything in a tenant that was suspended."""
    if event.status != "active":
        await revoke_sessions(store, because=Ended.TENANT_CLOSED, at=event.at)


def listen_for_revocation(
    bus: Bus,
    callers: Callers,
    api_keys: ApiKeys,
    live: Live,
    clock: Clock,
    access_lifetime: timedelta,
) -> None:
    """Let every replica know who may no longer call, and whose permissions changed.

    What it may have missed it makes up for by believing nothing it knew: everybody is looked up
    again, and live connections are opened anew.
    """

    def distrust() -> None:
        callers.forget_all()
        api_keys.forget_all()
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
        api_keys.forget_tenant(event.tenant_id)

    async def on_api_key_changed(event: tenancy.ApiKeyChanged | tenancy.ApiKeyRevoked) -> None:
        api_keys.forget(event.key_id)
        live.close_changed(event.tenant_id, event.key_id)

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
            tenancy.ApiKeyChanged: on_api_key_changed,
            tenancy.ApiKeyRevoked: on_api_key_changed,
        },
        on_gap=distrust,
    )


def listen_for_settings(bus: Bus, look: Callable[[], Awaitable[None]]) -> None:
    """Let every replica look anew when somebody set a limit or an origin.

    What it missed it finds by itself: it also looks every few seconds.
    """

    async def on_changed(_event: RateLimitsChanged | CorsOriginsChanged) -> None:
        await look()

    listen(
        bus,
        "gateway.settings",
        {RateLimitsChanged: on_changed, CorsOriginsChanged: on_changed},
    )


def listen_for_quotas(bus: Bus, callers: Callers, api_keys: ApiKeys, api_calls: ApiCalls) -> None:
    """Let every replica go by a tenant's new plan."""

    async def on_quotas_set(event: tenancy.TenantQuotasSet) -> None:
        api_calls.forget(event.tenant_id)
        callers.look_again(event.tenant_id)
        api_keys.forget_tenant(event.tenant_id)

    listen(
        bus, "gateway.quotas", {tenancy.TenantQuotasSet: on_quotas_set}, on_gap=api_calls.forget_all
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
    listeners[ingest.DevicesPlaced] = partial(_move, live)
    listen(bus, "gateway.live", listeners, on_gap=live.close_interrupted)


async def _move(live: Live, event: Event) -> None:
    assert isinstance(event, ingest.DevicesPlaced)
    live.move(
        event.tenant_id, [device_id for place in event.places for device_id in place.device_ids]
    )


async def _tell_device(live: Live, event: Event) -> None:
    fields = msgspec.structs.asdict(event)
    await live.tell(
        event.tenant_id,
        DeviceUpdate(_word(event), fields["device_id"], event.at, _rest(fields)),
    )


async def _tell_alert(live: Live, event: Event) -> None:
    fields = msgspec.structs.asdict(event)
    device_id: UUID | None = fields.get("device_id")
    await live.tell(
        event.tenant_id,
        AlertUpdate(_word(event), fields["alert_id"], device_id, event.at, _rest(fields)),
    )


def _word(event: Event) -> str:
    """Return what happened: `opened` of `alert.opened.v1`."""
    return event.type.split(".")[1]


def _rest(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name not in _ENVELOPE}
