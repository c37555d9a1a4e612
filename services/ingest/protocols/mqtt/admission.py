"""How many connections one process bears, and how many of those who have not logged in."""

from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections one process bears."""

    connections: int
    strangers: int
    """Of these, such as have not logged in. They are not told from each other, so when they are
    too many a device may have to come again; those logged in are not concerned."""
    strangers_per_address: int


class Admission(Generic[C]):
    """The connections there are, within the capacity."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.connections: set[C] = set()
        self.strangers: dict[C, str] = {}
        """Those that have not logged in, with their origin."""
        self._strangers_of: Counter[str] = Counter()
        self._turned_away = 0

    def admit(self, connection: C, origin: str) -> bool:
        """Take a connection in, as a stranger, if there is room for it."""
        capacity = self._capacity
        if (
            len(self.connections) >= capacity.connections
            or len(self.strangers) >= capacity.strangers
            or self._strangers_of[origin] >= capacity.strangers_per_address
        ):
            self._turned_away += 1
            return False
        self.connections.add(connection)
        self.strangers[connection] = origin
        self._strangers_of[origin] += 1
        return True

    def acquaint(self, connection: C) -> None:
        """Note that a connection has logged in: it is no stranger any more."""
        origin = self.strangers.pop(connection, None)
        if origin is not None:
            self._strangers_of[origin] -= 1
            if not self._strangers_of[origin]:
                del self._strangers_of[origin]

    def release(self, connection: C) -> None:
        """Note that a connection has ended."""
        self.connections.discard(connection)
        self.acquaint(connection)

    def tell_turned_away(self) -> None:
        """Write to the log how many were turned away since the last time, if any."""
        if self._turned_away:
            log.warning("too many connections, some turned away", count=self._turned_away)
            self._turned_away = 0
