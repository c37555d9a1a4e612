"""What one of the doors of retention may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.retention.store.history import History
from services.retention.store.policies import Policies


class RetentionStore(Store):
    """The policies of one tenant, and its history."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.policies = Policies(session, tenant_id)
        self.history = History(session)
