"""Credentials that are nobody's: looked up seldom, and counted against the address they come from."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from libs.common.errors import TooManyRequests, Unauthenticated

T = TypeVar("T")

REFUSED_S = 5.0
"""How long a refusal is remembered: the same credential is not looked up again so soon, and whoever
is let in again (a tenant that was suspended) must wait as long at most."""
REMEMBERED = 100_000


@dataclass(slots=True)
class _Budget:
    """What an origin may still get wrong, at a time."""

    left: float
    at: float


class Guesses:
    """What one process knows of credentials tried, by their hash, and of who tried them.

    Only refusals count: an origin may have `per_minute` of them at once, and as many a minute in
    the long run. Beyond that what it brings must wait, except a credential that was good when last
    seen: a plant's devices share an address, and a bad neighbour must not shut the others out.
    Times are in seconds and never run backwards.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._good: OrderedDict[bytes, None] = OrderedDict()
        """The least lately seen first."""
        self._refused: OrderedDict[bytes, float] = OrderedDict()
        """With when, the oldest first."""
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()
        """The one that was charged longest ago first; a full one is none."""

    async def look_up(
        self, credential: bytes, origin: str, called: str, look: Callable[[], Awaitable[T]]
    ) -> T:
        """Return what `look` finds by a credential, if it may be looked up now for this origin.

        `called` is what the credential is called. Raises Unauthenticated if it is nobody's, as
        `look` does then, and TooManyRequests if the origin must wait.
        """
        now = asyncio.get_running_loop().time
        if self.is_refused(credential, now()):
            raise Unauthenticated(f"the {called} is not valid")
        wait_s = self.wait_s(credential, origin, now())
        if wait_s > 0:
            raise TooManyRequests(
                f"too many {called}s from this address were not valid", retry_after_s=wait_s
            )
        try:
            found = await look()
        except Unauthenticated:
            self.failed(credential, origin, now())
            raise
        self.passed(credential)
        return found

    def is_refused(self, credential: bytes, now: float) -> bool:
        """Whether it was refused just now, and so would be again."""
        return now - self._refused.get(credential, -REFUSED_S) < REFUSED_S

    def wait_s(self, credential: bytes, origin: str, now: float) -> float:
        """Return for how long the credential must not be looked up for this origin; 0 if it may."""
        budget = self._budgets.get(origin)
        if budget is None or credential in self._good:
            return 0.0
        missing = 1.0 - self._left(budget, now)
        return max(0.0, missing * 60.0 / self._per_minute)

    def passed(self, credential: bytes) -> None:
        """Note that it was good."""
        self._good[credential] = None
        self._good.move_to_end(credential)
        if len(self._good) > REMEMBERED:
            self._good.popitem(last=False)

    def failed(self, credential: bytes, origin: str, now: float) -> None:
        """Note that it was looked up and is nobody's."""
        self._good.pop(credential, None)
        self._refused.pop(credential, None)
        self._refused[credential] = now
        budget = self._budgets.pop(origin, None)
        left = self._per_minute if budget is None else self._left(budget, now)
        self._budgets[origin] = _Budget(max(0.0, left - 1.0), now)
        self._forget(now)

    def _left(self, budget: _Budget, now: float) -> float:
        return min(self._per_minute, budget.left + (now - budget.at) * self._per_minute / 60.0)

    def _forget(self, now: float) -> None:
        """Drop what says nothing any more, and of what is too much the oldest."""
        while self._refused:
            credential, refused_at = next(iter(self._refused.items()))
            if now - refused_at < REFUSED_S and len(self._refused) <= REMEMBERED:
                break
            del self._refused[credential]
        while self._budgets:
            origin, budget = next(iter(self._budgets.items()))
            # After a minute any budget is full again.
            if now - budget.at < 60.0 and len(self._budgets) <= REMEMBERED:
                break
            del self._budgets[origin]
