"""What one of alerting's doors may touch within its transaction."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.bus.base import Outbox
from libs.common.db.engine import Database
from libs.common.db.transactions import Store, Transactions
from services.alerting.store.alerts import Alerts
from services.alerting.store.channels import Channels
from services.alerting.store.firings import Firings
from services.alerting.store.names import Names
from services.alerting.store.notifications import Notifications


class AlertingStore(Store):
    """What alerting keeps of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__(session, tenant_id)
        self.alerts = Alerts(session, tenant_id)
        self.channels = Channels(session, tenant_id)
        self.firings = Firings(session, tenant_id)
        self.names = Names(session, tenant_id)
        self.notifications = Notifications(session, tenant_id)


class AlertingTransactions(Transactions[AlertingStore]):
    """Opens alerting's transactions; calls `on_due` after one that made a notification due."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        super().__init__(database, outbox, AlertingStore)
        self.on_due: Callable[[], None] = _nobody_waits

    @asynccontextmanager
    async def begin(self, tenant_id: UUID, *others: UUID) -> AsyncIterator[AlertingStore]:
        """Open a transaction for one tenant; commit it, with its events, when the block ends."""
        async with super().begin(tenant_id, *others) as store:
            yield store
        if store.notifications.has_due:
            self.on_due()


def _nobody_waits() -> None:
    """What is due is found by the tick."""
