"""Who sends more than he may: told so by his protocol, and by a word on his status page.

A protocol asks before it reads what a device says, and counts what it then takes:

    quotas = reception.quotas
    quotas.check(source)                          # raises OverQuota; retry_after_s says when to come again
    decoded = read(payload, now, window)
    quotas.spend(source, len(decoded.points))     # raises OverQuota too: others may have spent meanwhile

HTTP answers OverQuota with 429; another says it in its own way. One that cannot refuse a message, but can
read it later, as MQTT, takes it from `quotas.of(source)`, reads on when that is paid, and calls
`slowed(source)` meanwhile. One that has connections calls `keep(source)` when one ends: to connect again
makes nobody's debt less.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.errors import NotFound, TooManyRequests
from services.ingest.domain.device import Source, Status
from services.ingest.domain.quota import Quota, Rate, messages, messages_by_size
from services.ingest.store.store import IngestStore
from services.ingest.usecases.devices import note_status

log = structlog.get_logger(__name__)

WITHIN_AGAIN = "within its quota again"


class OverQuota(TooManyRequests):
    """The device has sent more than it may; `retry_after_s` says when more is taken."""

    def __init__(self, detail: str, quota: Quota, *, retry_after_s: float) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.quota = quota


@dataclass(slots=True)
class _Told:
    """What was said of a device that has spent some of its quota."""

    is_refused: bool = False
    is_noted: bool = False


class Quotas:
    """What each device may still send to this process. One an event loop."""

    def __init__(self, rate: Rate, transactions: Transactions[IngestStore], clock: Clock) -> None:
        self._rate = rate
        self._transactions = transactions
        self._clock = clock
        self._spent: dict[Source, _Told] = {}
        """Devices whose quota must not be forgotten, even if nobody else holds them."""

    def of(self, source: Source) -> Quota:
        """Return the device's quota, which all its connections share."""
        if source.quota is None:
            source.quota = Quota(self._rate, _now())
        return source.quota

    def check(self, *sources: Source) -> None:
        """Raise OverQuota if one of the devices must wait; costs next to nothing."""
        now = _now()
        for source in sources:
            quota = self.of(source)
            wait_s = quota.wait_s(now)
            if wait_s > 0:
                self._spent.setdefault(source, _Told()).is_refused = True
                raise OverQuota(
                    f"{_reason(quota.rate)}; device {source.device_id} may send again in {wait_s:.1f} s",
                    quota,
                    retry_after_s=wait_s,
                )

    def spend(self, source: Source, points: int) -> None:
        """Count a message with so many points. Raises OverQuota, and counts nothing, if it must wait."""
        self.check(source)
        self._count(source, messages(points))

    def charge(self, source: Source, payload_bytes: int) -> int:
        """Count a large payload by its size, before it is read. Raises as `spend`.

        Returns as how many messages; `settle` says then what was in it.
        """
        self.check(source)
        charged = messages_by_size(payload_bytes)
        self._count(source, charged)
        return charged

    def settle(self, source: Source, points: int, charged: int) -> None:
        """Count what a payload that is charged already had in it beyond that."""
        self._count(source, max(0, messages(points) - charged))

    def _count(self, source: Source, count: int) -> None:
        quota = self.of(source)
        quota.spend(count, _now())
        if quota.left < 0:
            self._spent.setdefault(source, _Told())

    def slowed(self, source: Source) -> None:
        """Note that a device is read more slowly, as it sends more than it may."""
        self._spent.setdefault(source, _Told()).is_refused = True

    def keep(self, source: Source) -> None:
        """Remember what a device has spent, now that its connection is over.

        If it is refused again over another connection, its status page says so again: the words of
        its going and coming stand there by then.
        """
        if source.quota is not None and source.quota.full_s(_now()) > 0:
            self._spent[source] = _Told()

    async def note(self) -> None:
        """Write on the devices' status pages who is over his quota since the last time, and who no
        longer: when half of the burst is there again. Called every second.
        """
        # The time of all that is said now: what is said of a connection that ends meanwhile is newer.
        now, at = _now(), self._clock.now()
        changed: dict[UUID, list[tuple[Source, _Told, str]]] = {}
        for source, told in list(self._spent.items()):
            quota = self.of(source)
            quota.refill(now)
            is_over = quota.left < quota.rate.burst / 2
            if told.is_refused and is_over and not told.is_noted:
                changed.setdefault(source.tenant_id, []).append((source, told, _reason(quota.rate)))
            elif told.is_noted and not is_over:
                changed.setdefault(source.tenant_id, []).append((source, told, WITHIN_AGAIN))
            elif quota.left >= quota.rate.burst:
                del self._spent[source]
        for tenant_id, words in changed.items():
            await self._write(tenant_id, words, at)

    async def _write(
        self, tenant_id: UUID, words: Iterable[tuple[Source, _Told, str]], at: datetime
    ) -> None:
        for source, told, reason in words:
            was_noted = told.is_noted
            # Not after it is written: a connection may end meanwhile.
            told.is_noted = reason != WITHIN_AGAIN
            try:
                async with self._transactions.begin(tenant_id) as store:
                    await note_status(store, source.device_id, Status.ONLINE, reason, at=at)
            except NotFound:
                pass  # removed meanwhile
            except Exception as error:
                if is_transient(error):
                    told.is_noted = was_noted
                    log.warning("quotas wait for the database", error=str(error))
                    return
                # A fault of ours. It costs this word alone.
                log.exception("a quota was not noted", device=str(source.device_id))
            if reason == WITHIN_AGAIN:
                told.is_refused = False


def _reason(rate: Rate) -> str:
    return f"over its quota: more than {rate.per_second:g} messages a second"


def _now() -> float:
    return asyncio.get_running_loop().time()
