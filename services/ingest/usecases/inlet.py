"""One device's messages, from its protocol to the bus, in the order they came."""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import structlog

from libs.common.bus.outcome import is_transient
from libs.common.errors import AppError, TooLarge
from services.ingest.domain.channel import Channel
from services.ingest.domain.device import Source
from services.ingest.domain.payload import Decoded, Read, Refusal, Window, as_us, decode
from services.ingest.usecases.reception import Reception
from services.ingest.usecases.telemetry import Done

log = structlog.get_logger(__name__)

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

OnTaken = Callable[[Decoded], None]
"""Called with what became of a message: the points as they were taken, and what was refused."""


def nothing() -> None:
    """What is done about a message that wants no acknowledgement."""


def ignore(done: Done) -> None:
    """What is done about a message let go by who acknowledges each by itself: it comes again."""


def after(parts: int, done: Done) -> Done:
    """Return a function that calls `done` when it has been called so often."""
    left = parts

    def one() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done()

    return one


def at_most(most_bytes: int, read: Read) -> Read:
    """Return a Read that refuses payloads larger than that, for protocols that take them in whole."""

    def bounded(payload: bytes, received_at: datetime, window: Window) -> Decoded:
        if len(payload) > most_bytes:
            raise TooLarge(f"{len(payload)} bytes, where at most {most_bytes} are taken")
        return read(payload, received_at, window)

    return bounded


class Brought(NamedTuple):
    """A message as its protocol brought it."""

    channel: Channel
    payload: bytes
    received_at: datetime
    done: Done
    read: Read
    on_taken: OnTaken | None


class Inlet:
    """Takes what one device says over one connection, in order.

    `done` of a message is called when it is durable, as points or in the quarantine: only then may
    it be acknowledged. What the platform already knows the metrics of is taken at once; what needs
    the database (a new metric, an alarm, a reply) is taken behind it, and so is all that follows:
    then `is_waiting`, and no more should be read from the device until `on_settled` is called.
    While the database is away such messages are tried again as long as the connection lives.
    """

    __slots__ = (
        "_is_closed",
        "_on_let_go",
        "_on_settled",
        "_on_waiting",
        "_reception",
        "_waiting",
        "source",
    )

    def __init__(
        self,
        reception: Reception,
        source: Source,
        on_settled: Callable[[], None] = nothing,
        on_let_go: Callable[[Done], None] = ignore,
        on_waiting: Callable[[], None] = nothing,
    ) -> None:
        """`on_let_go` is told the `done` of each message that will never be durable."""
        self.source = source
        self._reception = reception
        self._on_settled = on_settled
        self._on_let_go = on_let_go
        self._on_waiting = on_waiting
        self._waiting: deque[Brought] | None = None
        self._is_closed = False

    @property
    def is_waiting(self) -> bool:
        """Whether messages wait for the database, so that no more should be brought."""
        return self._waiting is not None

    def close(self) -> None:
        """Say that the connection is over: what cannot be taken now is let go, unacknowledged."""
        self._is_closed = True

    def take(
        self,
        channel: Channel,
        payload: bytes,
        received_at: datetime,
        done: Done,
        read: Read = decode,
        on_taken: OnTaken | None = None,
    ) -> None:
        """Take a message; `done` is called once it is durable, `on_taken` before."""
        if self._waiting is not None:
            self._waiting.append(Brought(channel, payload, received_at, done, read, on_taken))
        elif channel is not Channel.TELEMETRY or not self._take_telemetry(
            payload, received_at, done, read, on_taken
        ):
            self._waiting = deque([Brought(channel, payload, received_at, done, read, on_taken)])
            self._on_waiting()
            self._reception.spawn(self._work_off())

    def _take_telemetry(
        self,
        payload: bytes,
        received_at: datetime,
        done: Done,
        read: Read,
        on_taken: OnTaken | None,
    ) -> bool:
        """Hand a message's points on; False if a new series must be registered first."""
        intake = self._reception.intake
        try:
            decoded = read(payload, received_at, self._reception.window)
        except AppError as error:
            self._refuse(
                Brought(Channel.TELEMETRY, payload, received_at, done, read, on_taken),
                error.slug,
                error.detail,
            )
            return True
        except Exception:
            # Ours to find, not the device's to suffer: kept with its reason.
            log.exception("a message could not be read", device=str(self.source.device_id))
            self._refuse(
                Brought(Channel.TELEMETRY, payload, received_at, done, read, on_taken),
                "internal",
                "the platform failed to read it",
            )
            return True
        intake.fit(self.source, decoded)
        if not intake.knows(self.source, decoded.points):
            return False
        intake.add(self.source, decoded, done)
        if on_taken is not None:
            on_taken(decoded)
        return True

    async def _work_off(self) -> None:
        """Take the messages that wait, one after the other, until none is left."""
        assert self._waiting is not None
        pause_s = FIRST_PAUSE_S
        while self._waiting:
            message = self._waiting[0]
            try:
                await self._take_slowly(message)
            except Exception as error:
                if not is_transient(error):
                    # Ours to find, not the device's to suffer: kept with its reason.
                    log.exception("a message could not be taken")
                    self._refuse(message, "internal", "the platform failed to take it")
                elif self._is_closed:
                    # Not acknowledged, so the device has them still; who has not is told.
                    log.warning("messages not taken", count=len(self._waiting))
                    for let_go in self._waiting:
                        self._on_let_go(let_go.done)
                    break
                else:
                    await asyncio.sleep(pause_s)
                    pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                    continue
            pause_s = FIRST_PAUSE_S
            self._waiting.popleft()
        self._waiting = None
        self._on_settled()

    async def _take_slowly(self, message: Brought) -> None:
        if message.channel is Channel.TELEMETRY:
            await self._take_new_telemetry(message)
            return
        try:
            await self._reception.reports.take(
                self.source, message.channel, message.payload, message.received_at
            )
        except AppError as error:
            if is_transient(error):
                raise
            self._refuse(message, error.slug, error.detail)
            return
        message.done()

    async def _take_new_telemetry(self, message: Brought) -> None:
        _, payload, received_at, done, read, on_taken = message
        if self._take_telemetry(payload, received_at, done, read, on_taken):
            return
        decoded = read(payload, received_at, self._reception.window)
        self._reception.intake.fit(self.source, decoded)
        await self._reception.intake.register(self.source, decoded)
        self._reception.intake.add(self.source, decoded, done)
        if on_taken is not None:
            on_taken(decoded)

    def _refuse(self, message: Brought, reason: str, detail: str) -> None:
        self._reception.intake.refuse_message(
            self.source,
            reason,
            detail,
            message.payload,
            message.done,
            received_at=message.received_at,
            channel=message.channel,
        )
        if message.on_taken is not None:
            refusal = Refusal(0, None, reason, detail, None)
            message.on_taken(Decoded(as_us(message.received_at), refused=[refusal]))
