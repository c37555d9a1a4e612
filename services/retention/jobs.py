"""What retention does by the clock."""

from datetime import date

import structlog

from libs.common.clock import Clock
from services.retention.usecases.erasure import Erasure

log = structlog.get_logger(__name__)


class DailyErasure:
    """Erases once a UTC day. Called more often, it does again what did not work out that day."""

    def __init__(self, erasure: Erasure, clock: Clock) -> None:
        self._erasure = erasure
        self._clock = clock
        self._done: date | None = None

    async def run(self) -> None:
        """Erase for all tenants and forget those long gone, unless it is done for today."""
        now = self._clock.now()
        if self._done == now.date():
            return
        days, rows = await self._erasure.of_all(dry_run=False, most=None, now=now)
        await self._erasure.forget_tenants(now=now)
        log.info("points erased", days=len(days), rows=sum(erased.rows for erased in rows))
        if not any(day.is_busy for day in days):
            self._done = now.date()
