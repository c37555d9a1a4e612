"""What devices report of themselves: each report is an event, committed before it is acknowledged."""

from datetime import datetime

from libs.common.db.transactions import Transactions
from libs.common.events.ingest import DeviceAlertReported
from services.ingest.domain.device import Source
from services.ingest.domain.report import read_alarm, read_status
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import note_status


class Reports:
    """Takes alarms and status words."""

    def __init__(self, transactions: Transactions[IngestStore]) -> None:
        self._transactions = transactions

    async def take_alert(self, source: Source, payload: bytes, at: datetime) -> None:
        """Pass on a device's own alarm. Raises Malformed or Invalid if it is none."""
        alarm = read_alarm(payload)
        async with self._transactions.begin(source.tenant_id) as store:
            store.emit(
                DeviceAlertReported(
                    tenant_id=source.tenant_id,
                    at=at,
                    device_id=source.device_id,
                    severity=alarm.severity,
                    message=alarm.message,
                    key=alarm.key,
                    active=alarm.active,
                )
            )

    async def take_status(self, source: Source, payload: bytes, at: datetime) -> None:
        """Note what a device says of itself. Raises Malformed or Invalid if it is no status."""
        word = read_status(payload)
        async with self._transactions.begin(source.tenant_id) as store:
            await note_status(store, source.device_id, word.status, word.reason, at=at)
