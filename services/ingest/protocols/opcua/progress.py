"""What a connection to a server leaves behind for the next one."""

import asyncio
from typing import Any

from services.ingest.usecases.connectors import Connector

MOST_ALARMS = 500
"""That are remembered as going on, to learn after an outage which of them have ended."""
REMEMBERED_EVERY_S = 5.0
"""How often time alone is remembered: who comes after a process that was killed reads that much more."""


class Progress:
    """Up to when all that the server published is durable here, and which of its alarms go on."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.until: int | None = connector.memory.get("until")
        """By the server's clock; µs since 1970."""
        self.alarms = {
            (str(source), str(key)) for source, key in connector.memory.get("alarms", [])
        }
        """Those that go on, by source and key: to read. `begins` and `ends` change it."""
        self.is_caught_up = False
        """Whether what was missed has been read: before that, what is new moves nothing on."""
        self._published = self.until
        """Up to when the server has published all that it had, durable or not."""
        self._under_way: list[int | None] = []
        """The same as it was before each message that is not durable yet."""
        self._remembered_at: float | None = None

    def begin(self, published_us: int | None) -> int | None:
        """Note a message that is not durable yet; return what `end` takes.

        With it the server has published all that it had up to that time; None: there is more, or it
        does not tell. Messages are noted in the order in which they came.
        """
        before = self._published
        self._under_way.append(before)
        if published_us is not None:
            self._published = published_us
        return before

    def end(self, before: int | None) -> None:
        """Note that the message is durable."""
        self._under_way.remove(before)
        self._advance()

    def reach(self, published_us: int | None) -> None:
        """Note that the server had nothing more to say up to that time."""
        if published_us is not None:
            self._published = published_us
        self._advance()

    def begins(self, source: str, key: str) -> None:
        """Note that an alarm goes on, as far as there is room to remember it."""
        about = (source, key)
        if about not in self.alarms and len(self.alarms) < MOST_ALARMS:
            self.alarms.add(about)
            self._remembered_at = None

    def ends(self, source: str, key: str) -> None:
        """Note that an alarm is over."""
        if (source, key) in self.alarms:
            self.alarms.discard((source, key))
            self._remembered_at = None

    def leave(self) -> None:
        """Remember what there is, for who comes next."""
        if self.is_caught_up:
            self._remember()

    def _advance(self) -> None:
        if not self.is_caught_up:
            return
        # What came later may be durable before what came first.
        reached = [self._published, *self._under_way]
        known = [each for each in reached if each is not None]
        if len(known) < len(reached):
            return
        self.until = min(known)
        now = asyncio.get_running_loop().time()
        if self._remembered_at is None or now - self._remembered_at >= REMEMBERED_EVERY_S:
            self._remember()
            self._remembered_at = now

    def _remember(self) -> None:
        memory: dict[str, Any] = {} if self.until is None else {"until": self.until}
        if self.alarms:
            memory["alarms"] = sorted(self.alarms)
        self._connector.remember(memory)
