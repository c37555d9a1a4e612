"""The events ingest hears: its own telemetry, to be written; devices revoked; tenants closed."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry, Counter

from libs.common.bus.base import Bus, Subscription
from libs.common.bus.outcome import is_transient
from libs.common.bus.subscriptions import Subscriptions, listen
from libs.common.events.base import Message
from libs.common.events.ingest import (
    DeviceCredentialRotated,
    DeviceDeleted,
    DevicesShutOut,
    TelemetryReceived,
)
from libs.common.events.tenancy import TenantDeleted, TenantUpdated
from services.ingest.store.landing import SUBSCRIPTION, Landed, Landing
from services.ingest.store.store import IngestStore
from services.ingest.usecases import tenants
from services.ingest.usecases.sources import REPLACED, Sources

log = structlog.get_logger(__name__)

BATCHES_AT_ONCE = 64
GATHER_S = 0.005
"""How long a batch waits for those of other shards: they leave the intake together, and arrive one
after the other."""


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


def listen_for_revocation(bus: Bus, sources: Sources) -> None:
    """Cut devices off, in every replica, when they or all of their tenant may not go on.

    What these events tell of is committed before they are said: who comes again is not let in.
    """

    async def on_device_deleted(event: DeviceDeleted) -> None:
        sources.revoke(event.device_id, "the device was removed")

    async def on_device_credential_rotated(event: DeviceCredentialRotated) -> None:
        sources.revoke(event.device_id, REPLACED)

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
