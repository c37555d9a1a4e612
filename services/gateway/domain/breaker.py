"""Not calling a service that is away: fail at once for a moment, instead of making everyone wait."""

FAILURES = 3
OPEN_S = 2.0


class Breaker:
    """Opens after three failures in a row, for two seconds; then one call finds out. Times in seconds."""

    def __init__(self) -> None:
        self._failures = 0
        self._open_until = float("-inf")

    def wait_s(self, now: float) -> float:
        """Return for how long no call should be made; 0 if it may be tried.

        After the pause one caller is let through to try, and the others wait on.
        """
        if self._failures < FAILURES:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        self._open_until = now + OPEN_S
        return 0.0

    def is_open(self, now: float) -> bool:
        """Whether no call should be made now; unlike `wait_s` it lets nobody through."""
        return self._failures >= FAILURES and now < self._open_until

    def succeeded(self) -> None:
        """Note that the service answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """Note that the service did not answer."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._open_until = now + OPEN_S
