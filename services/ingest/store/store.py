"""What one of ingest's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.ingest.store.devices import Devices
from services.ingest.store.quarantine import Quarantine
from services.ingest.store.tenants import Tenant


class IngestStore(Store):
    """Devices and quarantine of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.devices = Devices(session, tenant_id)
        self.quarantine = Quarantine(session, tenant_id)
        self.tenant = Tenant(session, tenant_id)
