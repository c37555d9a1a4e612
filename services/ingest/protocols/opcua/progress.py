"""What a connection to a server leaves behind for the next one."""

from typing import Any

from services.ingest.usecases.connectors import Connector

MOST_ALARMS = 500
"""That are remembered as going on, to learn after an outage which of them have ended."""


class Progress:
    """Up to when all that the server published is durable here, and which of its alarms go on."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self.until: int | None = connector.memory.get("until")
        """By the server's clock; µs since 1970."""
        self.alarms = {
            (str(source), str(key)) for source, key in connector.memory.get("alarms", [])
        }
        """Those that go on, by source and key."""
        self.is_caught_up = False
        """Whether what was missed has been read: before that, what is new moves nothing on."""
        self._under_way: list[int] = []

    def begin(self, published_us: int) -> None:
        """Note that something is under way, published at that time, which is not durable yet."""
        self._under_way.append(published_us)

    def end(self, published_us: int) -> None:
        """Note that it is durable."""
        self._under_way.remove(published_us)

    def reach(self, published_us: int | None) -> None:
        """Remember that all is durable that was published by then and is not under way."""
        if self.is_caught_up and published_us is not None:
            # What came later may be durable before what came first.
            self.until = min([published_us, *self._under_way])
            self._remember()

    def _remember(self) -> None:
        memory: dict[str, Any] = {} if self.until is None else {"until": self.until}
        if self.alarms:
            memory["alarms"] = sorted(self.alarms)[:MOST_ALARMS]
        self._connector.remember(memory)
