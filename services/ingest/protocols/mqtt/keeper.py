"""Keeps what sessions consist of beyond their connection, so that any process may go on with it."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import structlog

from libs.common.bus.outcome import is_transient
from libs.common.errors import Unavailable
from services.ingest.domain.device import Source
from services.ingest.protocols.mqtt.memory import Kept
from services.ingest.store.mqtt_sessions import MqttSessions, Word

log = structlog.get_logger(__name__)

AT_ONCE = 500
"""Sessions written in one transaction, at most."""
PAUSE_S = 1.0
STOP_S = 5.0
WRITTEN_S = 5.0
"""How long a device that comes back waits for its last session to be written down."""
PATIENCE_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""How long another process is given to write down what it knows of a session, between the looks.
One that is alive has it in a moment; one that is dead never does."""


class Keeper:
    """Reads sessions when devices come, and writes them, many at once, when they go. One a process.

    What cannot be written now is written later. While the database is away no session is resumed,
    and none that is to be kept is begun.
    """

    def __init__(self, sessions: MqttSessions) -> None:
        self._sessions = sessions
        self._holder = uuid4()
        self._words: dict[UUID, Word] = {}
        """What is not written yet, by device."""
        self._written: dict[UUID, asyncio.Future[None]] = {}
        """Of those, and of those being written: done when it is."""
        self._writer: asyncio.Task[None] | None = None
        self._stopping = False

    async def take(
        self, source: Source, expiry_s: int, *, resumes: bool, is_wanted: Callable[[], bool]
    ) -> Kept | None:
        """Return what is kept of a device's session if it `resumes`; from now on it is kept here.

        When it `is_wanted` no more, the connection being over, it is left where it is. Raises
        Unavailable if it cannot be found out now.
        """
        await self._until_written(source.device_id)
        try:
            for pause_s in (*PATIENCE_S, None):
                if not is_wanted():
                    return None
                taken = await self._sessions.take(
                    source.tenant_id,
                    source.device_id,
                    self._holder,
                    timedelta(seconds=expiry_s),
                    resumes=resumes,
                    is_patient=pause_s is not None,
                    empty=_EMPTY,
                )
                if not taken.is_elsewhere or pause_s is None:
                    break
                await asyncio.sleep(pause_s)
        except Exception as error:
            if is_transient(error):
                raise Unavailable("the session cannot be looked up now", retry_after_s=2) from error
            raise
        if taken.state is None:
            return None
        try:
            return Kept.from_bytes(taken.state)
        except msgspec.MsgspecError:
            # Of another release. The device is told that there is no session, and subscribes anew.
            log.exception("a session could not be read", device=str(source.device_id))
            return None

    async def _until_written(self, device_id: UUID) -> None:
        """Wait until what is known here of a session stands where it is looked for."""
        written = self._written.get(device_id)
        if written is None:
            return
        try:
            async with asyncio.timeout(WRITTEN_S):
                await asyncio.shield(written)
        except TimeoutError as error:
            raise Unavailable("the session is not written down yet", retry_after_s=2) from error

    def save(
        self, source: Source, kept: Kept, expiry_s: int, *, is_over: bool
    ) -> "asyncio.Future[None]":
        """Write a session down; what is returned is done when that is safe.

        `is_over`: its connection is, and any process may have it.
        """
        return self._note(
            Word(
                source.tenant_id,
                source.device_id,
                kept.to_bytes(),
                timedelta(seconds=expiry_s),
                time.monotonic(),
                is_over,
            )
        )

    def forget(self, source: Source) -> None:
        """See that nothing remains of the sessions that the device had until now."""
        self._note(
            Word(
                source.tenant_id,
                source.device_id,
                None,
                timedelta(),
                time.monotonic(),
                is_over=True,
            )
        )

    async def stop(self) -> None:
        """Write what is there, within 5 s; what is not written then is lost."""
        self._stopping = True
        if self._writer is not None:
            _, late = await asyncio.wait([self._writer], timeout=STOP_S)
            for task in late:
                task.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        for written in self._written.values():
            written.cancel()

    def _note(self, word: Word) -> "asyncio.Future[None]":
        device_id = word.device_id
        # The newest word takes the place of those that wait, and stands for them.
        self._words[device_id] = word
        written = self._written.get(device_id)
        if written is None:
            written = self._written[device_id] = asyncio.get_running_loop().create_future()
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="ingest.mqtt_sessions")
        return written

    async def _write_all(self) -> None:
        while self._words:
            words = [self._words.pop(device) for device in list(self._words)[:AT_ONCE]]
            try:
                await self._write(words)
            except Exception as error:  # noqa: BLE001 - transient: what else there is, `_write` has judged
                for word in words:
                    self._words.setdefault(word.device_id, word)
                log.warning("sessions wait for the database", error=str(error), count=len(words))
                if self._stopping:
                    return
                await asyncio.sleep(PAUSE_S)
                continue
            for word in words:
                if word.device_id not in self._words and (
                    written := self._written.pop(word.device_id, None)
                ):
                    written.set_result(None)

    async def _write(self, words: list[Word]) -> None:
        try:
            await self._sessions.write(self._holder, words)
        except Exception as error:
            if is_transient(error):
                raise
            if len(words) == 1:
                # A fault of ours. It costs this device its session, and nobody else's.
                log.exception("a session was not kept", device=str(words[0].device_id))
                return
            half = len(words) // 2
            await self._write(words[:half])
            await self._write(words[half:])


_EMPTY = Kept().to_bytes()
