"""How a connection out does, in words that the tenant reads."""

from services.ingest.domain.connector import State
from services.ingest.usecases.connectors import Report

SHOWN_PROBLEMS = 4


class Health:
    """What does not work of a connection, though it goes on: the connector is `degraded` by it."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._problems: dict[str, str] = {}
        """What does not work, by what it is about."""
        self._is_connected = False

    def connected(self) -> None:
        """Report that the connection stands, and what does not work; from now on at once."""
        self._is_connected = True
        self._say()

    def note(self, about: str, what: str) -> None:
        """Note that something does not work; a newer word about the same takes the older one's place."""
        self._problems[about] = what
        if self._is_connected:
            self._say()

    def forget(self, about: str) -> None:
        """Note that all is well with this again."""
        if self._problems.pop(about, None) is not None and self._is_connected:
            self._say()

    def knows(self, about: str) -> bool:
        """Whether something is noted about this."""
        return about in self._problems

    def in_words(self) -> str:
        """Return what does not work, the first few with their reasons."""
        shown = list(self._problems.items())[:SHOWN_PROBLEMS]
        words = "; ".join(f"{about}: {what}" for about, what in shown)
        more = len(self._problems) - len(shown)
        return f"{words}; and {more} more" if more else words

    def _say(self) -> None:
        if self._problems:
            self._report(State.DEGRADED, self.in_words())
        else:
            self._report(State.CONNECTED, "")
