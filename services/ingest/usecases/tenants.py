"""What becomes of a tenant's devices when the tenant is suspended, reinstated or deleted."""

from datetime import datetime

from libs.common.db.erasure import erase_tenant
from libs.common.events.ingest import DevicesShutOut
from services.ingest.domain.tenant import TenantStatus
from services.ingest.store.store import IngestStore


async def suspend(store: IngestStore, *, at: datetime) -> None:
    """Let no device of the tenant in any more, and cut those that are."""
    if await store.tenant.note(TenantStatus.SUSPENDED, at):
        _say_shut_out(store, TenantStatus.SUSPENDED, at)


async def reinstate(store: IngestStore, *, at: datetime) -> None:
    """Let the tenant's devices in again."""
    await store.tenant.note(TenantStatus.ACTIVE, at)


async def erase(store: IngestStore, *, at: datetime) -> None:
    """Shut the devices out for good and erase all that is kept of them.

    No `device.deleted` is said of each: whoever keeps anything of the tenant hears `tenant.deleted`.
    """
    await store.tenant.note(TenantStatus.DELETED, at)
    await erase_tenant(store, "ingest")
    # As the groups go, their devices are noted to be elsewhere; whoever erases the historian at the
    # same time does not see it.
    await store.placements.forget()
    _say_shut_out(store, TenantStatus.DELETED, at)


def _say_shut_out(store: IngestStore, status: TenantStatus, at: datetime) -> None:
    store.emit(DevicesShutOut(tenant_id=store.tenant_id, at=at, reason=status.value))
