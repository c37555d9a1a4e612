"""What alerting does by the clock: deliver what is due, forget what is long over."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import prometheus_client
import structlog

from libs.common.clock import Clock
from libs.common.db.books import trim_books
from libs.common.db.engine import Database
from libs.common.jobs import Ticker
from services.alerting.adapters.courier import Courier
from services.alerting.domain.outcome import Delivered, Outcome
from services.alerting.store.due import DueNotifications
from services.alerting.store.notifications import Claim
from services.alerting.store.store import AlertingTransactions
from services.alerting.usecases import deliveries

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look for what is due, and how much of it may be under way in one process.

    To a channel that just failed one delivery at a time is under way, however many it might have.
    """

    tick: timedelta
    at_once: int
    per_channel: int


class Deliveries:
    """Delivers what is due, many at once, so that nobody waits for somebody else's slow server."""

    def __init__(
        self,
        due: DueNotifications,
        transactions: AlertingTransactions,
        courier: Courier,
        clock: Clock,
        registry: prometheus_client.CollectorRegistry,
        pace: Pace,
    ) -> None:
        self._due = due
        self._transactions = transactions
        self._courier = courier
        self._clock = clock
        self._pace = pace
        self._ticker = Ticker("alerting.delivery", pace.tick, self._deliver_due)
        self._under_way: dict[asyncio.Task[None], UUID] = {}
        self._failing: set[UUID] = set()
        self._attempts = prometheus_client.Counter(
            "alerting_notification_attempts",
            "Attempts to deliver a notification, by how they ended.",
            ("channel", "outcome"),
            registry=registry,
        )

    async def _deliver_due(self) -> None:
        """Begin every delivery that is due and that there is room for; they end by themselves."""
        while free := self._pace.at_once - len(self._under_way):
            claims = await self._due.claim(free, self._pace.per_channel, self._rooms())
            if not claims:
                return
            for claim in claims:
                task = asyncio.create_task(self._deliver(claim), name="alerting.delivery")
                self._under_way[task] = claim.channel_id
                task.add_done_callback(self._ended)

    def start(self) -> None:
        """Begin to look for what is due."""
        self._ticker.start()

    def wake(self) -> None:
        """Look now: something became due, or there is room again."""
        self._ticker.wake()

    async def stop(self, within: timedelta) -> None:
        """Let what is under way end, within the time given.

        What is cut off then goes out again under the same id, when its lease has ended.
        """
        await self._ticker.stop(within)
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=within.total_seconds())
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _rooms(self) -> dict[UUID, int]:
        """How many more deliveries a channel may have, where that is not the usual."""
        usual = self._pace.per_channel
        busy = Counter(self._under_way.values())
        return {
            channel: max(0, (1 if channel in self._failing else usual) - busy[channel])
            for channel in {*busy, *self._failing}
        }

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease brings it back; what failed here is our own database, as a rule.
            log.error("a delivery was not recorded", error=repr(error))
        self.wake()

    async def _deliver(self, claim: Claim) -> None:
        with structlog.contextvars.bound_contextvars(tenant=str(claim.tenant_id)):
            async with self._transactions.begin(claim.tenant_id) as store:
                dispatch = await deliveries.prepare(store, claim)
            if dispatch is None:
                return
            now = self._clock.now()
            outcome = await self._courier.send(dispatch.channel, dispatch.notice, now=now)
            async with self._transactions.begin(claim.tenant_id) as store:
                recorded = await deliveries.record(
                    store,
                    claim,
                    dispatch.notification,
                    outcome,
                    at=self._clock.now(),
                    jitter=random.random(),
                )
            self._note(claim, dispatch, outcome, recorded=recorded)

    def _note(
        self, claim: Claim, dispatch: deliveries.Dispatch, outcome: Outcome, *, recorded: bool
    ) -> None:
        kind = dispatch.channel.kind.value
        self._attempts.labels(kind, type(outcome).__name__.lower()).inc()
        if isinstance(outcome, Delivered):
            self._failing.discard(claim.channel_id)
        else:
            self._failing.add(claim.channel_id)
            log.warning(
                "not delivered",
                notification=str(claim.notification_id),
                channel=str(claim.channel_id),
                kind=kind,
                attempt=dispatch.notification.attempts,
                reason=outcome.reason,
            )
        if not recorded:
            log.warning("the lease was lost", notification=str(claim.notification_id))


async def keep_house(
    due: DueNotifications,
    engine: Database,
    inbox_kept: timedelta,
    keys_kept: timedelta,
    firings_kept: timedelta,
) -> None:
    """Forget events handled, requests with a key answered, and firings ended long ago."""
    await trim_books(engine, "alerting", inbox_kept, keys_kept)
    await due.forget_firings(firings_kept)
