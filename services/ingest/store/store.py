"""What one of ingest's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from libs.common.quotas.store import Quotas
from services.ingest.store.attributes import Attributes
from services.ingest.store.claims import Claims
from services.ingest.store.coap import Policies, Sequences
from services.ingest.store.commands import Commands
from services.ingest.store.connectors import ConnectorRows
from services.ingest.store.credentials import Credentials
from services.ingest.store.devices import Devices
from services.ingest.store.gateways import Gateways
from services.ingest.store.groups import Groups
from services.ingest.store.ledger import Ledger
from services.ingest.store.placements import Placements
from services.ingest.store.profiles import Profiles
from services.ingest.store.provisioning import ProvisioningKeys
from services.ingest.store.quarantine import Quarantine
from services.ingest.store.tenants import Tenant
from services.ingest.store.usage import Usage


class IngestStore(Store):
    """What ingest keeps of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.commands = Commands(session, tenant_id)
        self.devices = Devices(session, tenant_id)
        self.credentials = Credentials(session, tenant_id)
        self.profiles = Profiles(session, tenant_id)
        self.gateways = Gateways(session, tenant_id)
        self.groups = Groups(session, tenant_id)
        self.attributes = Attributes(session, tenant_id)
        self.claims = Claims(session, tenant_id)
        self.provisioning_keys = ProvisioningKeys(session, tenant_id)
        self.connectors = ConnectorRows(session, tenant_id)
        self.policies = Policies(session, tenant_id)
        self.sequences = Sequences(session, tenant_id)
        self.quarantine = Quarantine(session, tenant_id)
        self.ledger = Ledger(session, tenant_id)
        self.placements = Placements(session, tenant_id)
        self.tenant = Tenant(session, tenant_id)
        self.quotas = Quotas(session, tenant_id, "ingest")
        self.usage = Usage(session, tenant_id)
