"""What one of the doors of rules may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from libs.common.quotas.store import Quotas
from services.rules.store.rules import Rules


class RulesStore(Store):
    """The rules of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.rules = Rules(session, tenant_id)
        self.quotas = Quotas(session, tenant_id, "rules")
