"""What devices report of themselves: each report is an event, committed before it is acknowledged."""

from datetime import datetime
from uuid import UUID

from libs.common.db.transactions import Transactions
from libs.common.events.ingest import DeviceAlertReported
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.quota import Quota, Rate
from services.ingest.domain.report import TooManyReports, read_alarm, read_status
from services.ingest.store.store import IngestStore
from services.ingest.usecases.attributes import take_own
from services.ingest.usecases.commands import take_reply
from services.ingest.usecases.devices import note_status

KEPT = 10_000
"""Devices whose allowances are kept before it is looked which need not be."""


class Reports:
    """Takes what devices say of themselves, so many reports a minute of a device, and so many replies."""

    def __init__(
        self, transactions: Transactions[IngestStore], a_minute: int, replies_a_minute: int = 600
    ) -> None:
        self._transactions = transactions
        self._reports = _Allowances(a_minute, "reports")
        self._replies = _Allowances(replies_a_minute, "replies")

    async def take(self, source: Source, channel: Channel, payload: bytes, at: datetime) -> None:
        """Take a device's own alarm or status, or its answer to a command.

        Raises Malformed or Invalid if it is none, TooManyReports if the device has said too much.
        """
        (self._replies if channel is Channel.REPLIES else self._reports).spend(source.device_id, at)
        async with self._transactions.begin(source.tenant_id) as store:
            await take_report(store, source.device_id, channel, payload, at=at)

    def take_question(self, source: Source, at: datetime) -> None:
        """Count a question of the device's as if it were a reply. Raises TooManyReports."""
        self._replies.spend(source.device_id, at)


class _Allowances:
    """How much each device may still say of one kind."""

    def __init__(self, a_minute: int, what: str) -> None:
        self._a_minute = a_minute
        self._what = what
        self._left: dict[UUID, Quota] = {}
        self._most = KEPT

    def spend(self, device_id: UUID, at: datetime) -> None:
        """Take one from what the device may say. Raises TooManyReports if there is none left."""
        now = at.timestamp()
        left = self._left.get(device_id)
        if left is None:
            if len(self._left) >= self._most:
                # What has grown to the full again need not be known. When all have said something, as
                # after a power cut, it is looked again only when they are twice as many.
                self._left = {d: kept for d, kept in self._left.items() if kept.full_s(now) > 0}
                self._most = max(KEPT, 2 * len(self._left))
            left = self._left[device_id] = Quota(Rate(self._a_minute / 60, self._a_minute), now)
        left.refill(now)
        if left.left < 1:
            raise TooManyReports(
                f"a device may make {self._a_minute} {self._what} a minute",
                retry_after_s=(1 - left.left) / left.rate.per_second,
            )
        left.spend(1, now)


async def take_report(
    store: IngestStore, device_id: UUID, channel: Channel, payload: bytes, *, at: datetime
) -> None:
    """Pass an alarm on, note a status or an answer. Raises Malformed or Invalid if the payload is none."""
    if channel is Channel.ATTRIBUTES:
        await take_own(store, device_id, payload, at=at)
        return
    if channel is Channel.REPLIES:
        await take_reply(store, device_id, payload, at=at)
        return
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
