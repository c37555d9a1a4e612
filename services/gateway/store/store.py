"""What one of the gateway's doors may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.gateway.store.cors_origins import CorsOrigins
from services.gateway.store.pending_logins import PendingLogins
from services.gateway.store.rate_limits import RateLimitPolicies
from services.gateway.store.sessions import Sessions


class GatewayStore(Store):
    """The sessions of one tenant, the logins that are to become some, and what it sets for itself."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.sessions = Sessions(session, tenant_id)
        self.rate_limits = RateLimitPolicies(session, tenant_id)
        self.cors_origins = CorsOrigins(session, tenant_id)
        self.pending_logins = PendingLogins(session, tenant_id)
