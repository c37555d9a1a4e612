"""What devices report of themselves: each report is an event, committed before it is acknowledged."""

from datetime import datetime
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.events.ingest import DeviceAlertReported
from services.ingest.domain.allowance import Allowance
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.report import TooManyReports, read_alarm, read_status
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import note_status

MOST_KEPT = 10_000


class Reports:
    """Takes alarms and status words, so many `a_minute` of a device."""

    def __init__(self, transactions: Transactions[IngestStore], a_minute: int) -> None:
        self._transactions = transactions
        self._a_minute = a_minute
        self._allowances: dict[UUID, Allowance] = {}

    async def take(self, source: Source, channel: Channel, payload: bytes, at: datetime) -> None:
        """Take a device's own alarm or status.

        Raises Malformed or Invalid if it is none, TooManyReports if the device has said too much.
        """
        self._spend(source.device_id, at)
        async with self._transactions.begin(source.tenant_id) as store:
            await take_report(store, source.device_id, channel, payload, at=at)

    def _spend(self, device_id: UUID, at: datetime) -> None:
        known = self._allowances.get(device_id)
        full = Allowance(self._a_minute, at)
        left = full.spent() if known is None else known.later(at, self._a_minute).spent()
        if left is None:
            raise TooManyReports(f"a device may make {self._a_minute} reports a minute")
        if known is None and len(self._allowances) >= MOST_KEPT:
            # What has grown to the full again need not be known.
            self._allowances = {
                device: allowance
                for device, kept in self._allowances.items()
                if (allowance := kept.later(at, self._a_minute)).left < self._a_minute
            }
        self._allowances[device_id] = left


async def take_report(
    store: IngestStore, device_id: UUID, channel: Channel, payload: bytes, *, at: datetime
) -> None:
    """Pass an alarm on, or note a status. Raises Malformed or Invalid if the payload is none."""
    if channel is Channel.STATUS:
        word = read_status(payload)
        await note_status(store, device_id, word.status, word.reason, at=at)
        return
    alarm = read_alarm(payload)
    store.emit(
        DeviceAlertReported(
            tenant_id=store.tenant_id,
            at=at,
            device_id=device_id,
            severity=alarm.severity,
            message=alarm.message,
            key=alarm.key,
            active=alarm.active,
        )
    )
