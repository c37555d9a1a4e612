"""What one of the doors of analytics may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.analytics.store.history import History


class AnalyticsStore(Store):
    """The history of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.history = History(session, tenant_id)
