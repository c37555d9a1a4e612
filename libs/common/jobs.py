"""The door through which the clock comes: work that is done again and again.

A job is an async function without arguments (bind them with `functools.partial` in `app.py`). It
finds by itself what is due, in PostgreSQL's time; the ticker only says when to look.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from libs.common.tasks import end, is_own_cancellation

log = structlog.get_logger(__name__)


class Ticker:
    """Runs a job every `period`, and at once when woken; never twice at the same time.

    A job that fails is logged and tried again at the next tick; a tick is a safety net, so a
    failing job can never stop its own ticker.
    """

    def __init__(self, name: str, period: timedelta, job: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._period_s = period.total_seconds()
        self._job = job
        self._woken = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Run the job now, or once more after the run under way."""
        self._woken.set()

    def start(self) -> None:
        """Begin; the first run is at once."""
        self._stopping = False
        self._woken.set()
        self._task = asyncio.create_task(self._run(), name=f"job.{self.name}")

    async def stop(self, within: timedelta = timedelta(seconds=10)) -> None:
        """Let a run under way finish, within the time given, then end."""
        if self._task is None:
            return
        self._stopping = True
        self._woken.set()
        await asyncio.wait([self._task], timeout=within.total_seconds())
        await end(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            # Spread, so that replicas do not all look at the same moment.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._woken.wait(), self._period_s * random.uniform(0.9, 1.1)
                )
            if self._stopping:
                return
            self._woken.clear()
            try:
                await self._job()
            except asyncio.CancelledError as error:
                if is_own_cancellation(error):
                    raise
                # Not us: something that the job waited for was cancelled.
                log.exception("job failed", job=self.name)
            except Exception:
                # Whatever it is: at the next tick the job is tried again.
                log.exception("job failed", job=self.name)
