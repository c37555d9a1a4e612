"""How fast a device may publish: beyond its quota it is read more slowly, and in the end cut off."""

from services.ingest.domain.quota import Quota, Rate
from services.ingest.protocols.mqtt.limits import Limits


class Pace:
    """One connection's, with the quota that the device may share with others of its connections."""

    __slots__ = ("_over_quota_s", "_over_since", "is_slowed", "quota")

    def __init__(self, limits: Limits, now: float) -> None:
        self.quota = Quota(Rate(limits.messages_per_second, limits.burst), now)
        """What is sent is taken from its `left`; below zero, `note_over`."""
        self.is_slowed = False
        """The device owes: it is not read from until that has grown back."""
        self._over_quota_s = limits.over_quota_s
        self._over_since: float | None = None

    def note_over(self, now: float) -> None:
        """Look whether the device has really sent more than it may; then it is slowed."""
        self.quota.refill(now)
        if self.quota.left < 0:
            self.is_slowed = True
            if self._over_since is None:
                self._over_since = now

    def look(self, now: float) -> bool:
        """Let the device be read again when there is quota; True if it has wanted too much for too long.

        The matter is forgotten when the half of its burst is back.
        """
        if self._over_since is None:
            return False
        self.quota.refill(now)
        if self.quota.left >= 0:
            self.is_slowed = False
        if self.quota.left >= self.quota.rate.burst / 2:
            self._over_since = None
            return False
        return now - self._over_since >= self._over_quota_s
