"""What one of the gateway's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.gateway.store.sessions import Sessions


class GatewayStore(Store):
    """The sessions of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.sessions = Sessions(session, tenant_id)
