"""The events ingest hears: its own telemetry, to be written; tenants closed; commands asked for. And what
every replica must know at once: who may go on, and as what, and what waits for it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import CollectorRegistry, Counter

from libs.common.bus.base import Bus, Subscription
from libs.common.bus.outcome import is_transient
from libs.common.bus.subscriptions import Subscriptions, listen
from libs.common.events.base import Message
from libs.common.events.ingest import (
    CommandCompleted,
    CommandQueued,
    ConnectorChanged,
    DeviceAttributesChanged,
    DeviceCredentialRotated,
    DeviceDeleted,
    DeviceGatewayChanged,
    DevicePolicyChanged,
    DeviceProfileChanged,
    DevicesShutOut,
    DevicesTakenOver,
    DeviceUpdated,
    TelemetryReceived,
)
from libs.common.events.rules import CommandRequested
from libs.common.events.tenancy import TenantDeleted, TenantQuotasSet, TenantUpdated
from services.ingest.domain.attribute import Scope
from services.ingest.domain.policy import DevicePolicy
from services.ingest.store.landing import SUBSCRIPTION, Landed, Landing
from services.ingest.store.store import IngestStore
from services.ingest.usecases import commands, tenants
from services.ingest.usecases.allowances import Allowances
from services.ingest.usecases.connectors import Connectors
from services.ingest.usecases.downlinks import Dispatcher
from services.ingest.usecases.policies import Policies
from services.ingest.usecases.polls import Outcomes
from services.ingest.usecases.presence import Presence
from services.ingest.usecases.profiles import ProfilesInUse
from services.ingest.usecases.sources import Sources

log = structlog.get_logger(__name__)

BATCHES_AT_ONCE = 64
GATHER_S = 0.005
"""How long a batch waits for those of other shards: they leave the intake together, and arrive one
after the other."""

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs something beside, as `Reception.spawn` does."""


@dataclass(slots=True, eq=False)
class _Brought:
    batches: list[TelemetryReceived]
    is_stored: bool = False
    error: Exception | None = None

    @property
    def is_over(self) -> bool:
        return self.is_stored or self.error is not None


subscriptions = Subscriptions[IngestStore]("ingest")


@subscriptions.on(TenantUpdated)
async def on_tenant_updated(event: TenantUpdated, store: IngestStore) -> None:
    """Shut the devices of a suspended tenant out, and let those of a reinstated one in."""
    if event.status == "active":
        await tenants.reinstate(store, at=event.at)
    else:
        await tenants.suspend(store, at=event.at)


@subscriptions.on(TenantDeleted)
async def on_tenant_deleted(event: TenantDeleted, store: IngestStore) -> None:
    """Shut the tenant's devices out and erase what is kept of them."""
    await tenants.erase(store, at=event.at)


@subscriptions.on(TenantQuotasSet)
async def on_quotas_set(event: TenantQuotasSet, store: IngestStore) -> None:
    """Keep what the tenant may have."""
    await store.quotas.note(event)


@subscriptions.on(DeviceDeleted)
async def on_device_deleted(event: DeviceDeleted, store: IngestStore) -> None:
    """End the commands that wait for a device that is no more."""
    await commands.abandon(store, event.device_id, at=event.at)


@subscriptions.on(CommandRequested)
async def on_command_requested(event: CommandRequested, store: IngestStore) -> None:
    """Send a device what a rule asks for."""
    await commands.request(store, event, at=event.at)


class Writer:
    """Writes what the bus brings: what all shards wait with goes into one transaction.

    While one transaction runs the next is gathered, up to about `rows` points, so that batches
    grow under load by themselves.
    """

    def __init__(self, landing: Landing, rows: int, registry: CollectorRegistry) -> None:
        self._landing = landing
        self._rows = rows
        self._stored = Counter(
            "ingest_points_stored", "Points stored in the historian.", registry=registry
        )
        self._duplicates = Counter(
            "ingest_points_duplicate", "Points that were there already.", registry=registry
        )
        self._quarantined = Counter(
            "ingest_points_quarantined", "Points put into quarantine.", registry=registry
        )
        self._displaced = Counter(
            "ingest_quarantine_displaced",
            "Entries of the quarantine that gave way to newer ones.",
            registry=registry,
        )
        self._turn = asyncio.Lock()
        self._waiting: deque[_Brought] = deque()

    def attach(self, bus: Bus) -> None:
        """Subscribe to telemetry, one active writer a shard."""
        bus.subscribe(
            Subscription(
                SUBSCRIPTION,
                frozenset({TelemetryReceived.type}),
                sharded=True,
                batch=BATCHES_AT_ONCE,
            ),
            self.write,
        )

    async def write(self, messages: Sequence[Message]) -> None:
        """Store the batches; returns after the COMMIT. Raises what that raised."""
        brought = _Brought([TelemetryReceived.from_message(message) for message in messages])
        self._waiting.append(brought)
        try:
            while not brought.is_over:
                async with self._turn:
                    if not brought.is_over:
                        await asyncio.sleep(GATHER_S)
                        await self._write_some()
        finally:
            if brought in self._waiting:  # cancelled: nobody waits for it any more
                self._waiting.remove(brought)
        if brought.error is not None:
            raise brought.error

    async def _write_some(self) -> None:
        """Write what waits longest, and what fits beside it."""
        group: list[_Brought] = []
        rows = 0
        while self._waiting:
            group.append(self._waiting.popleft())
            rows += sum(len(batch) + len(batch.texts) for batch in group[-1].batches)
            if rows >= self._rows:
                break
        try:
            await self._land(group)
        except asyncio.CancelledError:
            # Only the one whose turn it is was cancelled: what the others brought still waits.
            self._waiting.extendleft(reversed(group))
            raise

    async def _land(self, group: list[_Brought]) -> None:
        try:
            landed = await self._landing.land([b for brought in group for b in brought.batches])
        except Exception as error:  # noqa: BLE001 - judged by the bus, for each who brought something
            if len(group) > 1 and not is_transient(error):
                # The fault of one of them: each is tried apart.
                for brought in group:
                    await self._land([brought])
                return
            for brought in group:
                brought.error = error
            return
        for brought in group:
            brought.is_stored = True
        self._count(landed)

    def _count(self, landed: Landed) -> None:
        self._stored.inc(landed.stored)
        self._duplicates.inc(landed.duplicates)
        self._quarantined.inc(landed.quarantined)
        self._displaced.inc(landed.displaced)
        for point in landed.rejected:
            log.warning("the store refused a point", series=point.series, reason=point.reason)


def _make_up(spawn: Spawn, look: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Return an `on_gap` by which it is looked what was missed, as soon as that can be done."""

    async def work() -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await look()
            except Exception as error:
                if not is_transient(error):
                    raise
                log.warning("what was missed is looked for later", error=repr(error))
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def on_gap() -> None:
        spawn(work())

    return on_gap


def listen_for_takeovers(bus: Bus, presence: Presence, spawn: Spawn) -> None:
    """End a device's connection, in every replica, when it has a newer one to another."""

    async def on_devices_taken_over(event: DevicesTakenOver) -> None:
        presence.taken_over(event.endpoint_id, event.connected)

    listen(
        bus,
        "ingest.takeovers",
        {DevicesTakenOver: on_devices_taken_over},
        on_gap=_make_up(spawn, presence.look_for_takeovers),
    )


def listen_for_gateways(
    bus: Bus, changed: Callable[[UUID], None], look_again: Callable[[], None]
) -> None:
    """Ask anew, in every replica, for whom a device may speak when that has changed."""

    async def on_gateway_changed(event: DeviceGatewayChanged) -> None:
        changed(event.device_id)

    listen(bus, "ingest.gateways", {DeviceGatewayChanged: on_gateway_changed}, on_gap=look_again)


def listen_for_attributes(
    bus: Bus,
    tell: Callable[[UUID, UUID, list[str]], Awaitable[None]],
    tell_all: Callable[[], Awaitable[None]],
    spawn: Spawn,
) -> None:
    """Tell devices, in whichever replica they are connected, of what users set for them."""

    async def on_attributes_changed(event: DeviceAttributesChanged) -> None:
        if event.scope == Scope.SHARED:
            await tell(event.tenant_id, event.device_id, list(event.names))

    listen(
        bus,
        "ingest.attributes",
        {DeviceAttributesChanged: on_attributes_changed},
        on_gap=_make_up(spawn, tell_all),
    )


def listen_for_profiles(bus: Bus, profiles: ProfilesInUse, spawn: Spawn) -> None:
    """Take devices' points as their profile says now, in every replica."""

    async def on_profile_changed(event: DeviceProfileChanged) -> None:
        await profiles.profile_changed(event.tenant_id, event.profile_id)

    async def on_device_updated(event: DeviceUpdated) -> None:
        await profiles.device_changed(event.tenant_id, event.device_id)

    listen(
        bus,
        "ingest.profiles",
        {DeviceProfileChanged: on_profile_changed, DeviceUpdated: on_device_updated},
        on_gap=_make_up(spawn, profiles.read_again),
    )


def listen_for_revocation(bus: Bus, sources: Sources) -> None:
    """Cut devices off, in every replica, when they or all of their tenant may not go on.

    What these events tell of is committed before they are said: who comes again is not let in.
    """

    async def on_device_deleted(event: DeviceDeleted) -> None:
        sources.revoke(event.device_id, "the device was removed")

    async def on_device_credential_rotated(event: DeviceCredentialRotated) -> None:
        if event.ends_at is None:
            sources.withdraw(event.device_id, event.credential_ids)
        else:
            sources.end(event.device_id, event.credential_ids, event.ends_at)

    async def on_devices_shut_out(event: DevicesShutOut) -> None:
        sources.revoke_tenant(event.tenant_id, f"the tenant is {event.reason}")

    listen(
        bus,
        "ingest.revocation",
        {
            DeviceDeleted: on_device_deleted,
            DeviceCredentialRotated: on_device_credential_rotated,
            DevicesShutOut: on_devices_shut_out,
        },
    )


def listen_for_connectors(bus: Bus, connectors: Connectors) -> None:
    """Look at the connectors at once, in every replica, when one changed or may not go on."""

    async def look(event: ConnectorChanged | DevicesShutOut) -> None:
        connectors.wake()

    listen(
        bus,
        "ingest.connectors",
        {ConnectorChanged: look, DevicesShutOut: look},
        on_gap=connectors.wake,
    )


def listen_for_commands(bus: Bus, dispatcher: Dispatcher, outcomes: Outcomes) -> None:
    """Send, in every replica, what is queued for devices that it has a way to; tell who waits."""

    async def on_command_queued(event: CommandQueued) -> None:
        dispatcher.wake(event.device_id)

    async def on_command_completed(event: CommandCompleted) -> None:
        outcomes.completed(event.command_id)

    listen(
        bus,
        "ingest.commands",
        {CommandQueued: on_command_queued, CommandCompleted: on_command_completed},
        on_gap=dispatcher.wake_all,
    )


def listen_for_quotas(bus: Bus, allowances: Allowances) -> None:
    """Go by a tenant's new plan, in every replica."""

    async def on_quotas_set(event: TenantQuotasSet) -> None:
        allowances.forget(event.tenant_id)

    listen(bus, "ingest.quotas", {TenantQuotasSet: on_quotas_set})


def listen_for_policies(bus: Bus, policies: Policies) -> None:
    """Go by a tenant's new policy, in every replica."""

    async def on_device_policy_changed(event: DevicePolicyChanged) -> None:
        policies.changed(event.tenant_id, DevicePolicy(plain_coap=event.plain_coap))

    listen(
        bus,
        "ingest.policies",
        {DevicePolicyChanged: on_device_policy_changed},
        on_gap=policies.forget,
    )
