"""What one of the doors of ml may touch within its transaction."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.db.transactions import Store
from services.ml.store.anomalies import Anomalies
from services.ml.store.history import History
from services.ml.store.models import Models


class MlStore(Store):
    """The models and anomalies of one tenant, and its history."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.models = Models(session, tenant_id)
        self.anomalies = Anomalies(session, tenant_id)
        self.history = History(session, tenant_id)
