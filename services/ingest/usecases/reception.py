"""Where all protocols bring what their devices say, and ask who they are."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from libs.common.auth.guesses import Guesses
from libs.common.clock import Clock
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Window
from services.ingest.domain.protocol import PayloadFormat, Protocol
from services.ingest.domain.token import hash_token
from services.ingest.usecases.downlinks import Downlinks
from services.ingest.usecases.presence import Presence
from services.ingest.usecases.quotas import Quotas
from services.ingest.usecases.reports import Reports
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake

log = structlog.get_logger(__name__)

TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Believed:
    """Which times of points are believed, and how long somebody waits for them to be durable."""

    past: timedelta
    ahead: timedelta
    within: timedelta


class Reception:
    """What a protocol needs of the platform, in one place. One an event loop."""

    def __init__(
        self,
        sources: Sources,
        intake: Intake,
        presence: Presence,
        reports: Reports,
        quotas: Quotas,
        downlinks: Downlinks,
        guesses: Guesses,
        clock: Clock,
        believed: Believed,
    ) -> None:
        self.sources = sources
        self.intake = intake
        self.presence = presence
        self.reports = reports
        self.quotas = quotas
        self.downlinks = downlinks
        self.guesses = guesses
        self.clock = clock
        self.believed = believed
        self.window = self._window_now()
        """Which times are believed; renewed every second."""
        self.on_tick: list[Callable[[], None]] = []
        """Called every second, once the window is renewed."""
        self.heard: set[Source] = set()
        """Who spoke since that was last written down; at most one entry a device."""
        self.tasks: set[asyncio.Task[None]] = set()
        """What is being done for devices just now."""
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep time."""
        self._ticker = asyncio.create_task(self._tick_forever(), name="ingest.reception")

    async def stop(self) -> None:
        """End, and with it what messages still wait for; these were not acknowledged."""
        tasks = [*self.tasks, *([self._ticker] if self._ticker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._ticker = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run something until it is done; it ends with the reception."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        # It reports to nobody: a fault of ours would else pass unseen, and what waits for it would wait on.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("what was done for a device failed", task=repr(task), exc_info=error)

    async def login(self, token: str, origin: str) -> Source:
        """Return the device whose token it is.

        Raises Unauthenticated if it is nobody's, TooManyRequests if too many such came from that
        address, Unavailable if it cannot be found out now.
        """
        return await self.guesses.look_up(
            hash_token(token), origin, "token", partial(self.sources.login, token)
        )

    def met(self, source: Source, protocol: Protocol, written: PayloadFormat | None = None) -> None:
        """Note that a device speaks, by which protocol and in which form; costs next to nothing."""
        source.seen_at = self.clock.now()
        source.protocol = protocol
        if written is not None:
            source.payload_format = written
        self.heard.add(source)

    def _window_now(self) -> Window:
        return Window.around(self.clock.now(), past=self.believed.past, ahead=self.believed.ahead)

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.window = self._window_now()
            for call in self.on_tick:
                try:
                    call()
                except Exception:
                    # The window of time, and all the others, hang on this task.
                    log.exception("a second's work of a protocol failed")
