"""How fast a device may publish: beyond its quota it is read more slowly, and in the end cut off."""

from services.ingest.domain.quota import Quota, Rate
from services.ingest.protocols.mqtt.limits import Limits

FORGIVEN_S = 3.0
"""When a device has not been slowed for so long, what it sends too much from then on is another matter."""


class Pace:
    """One connection's, with the quota that the device may share with others of its connections."""

    __slots__ = ("_over_quota_s", "_over_since", "_slowed_at", "is_slowed", "quota")

    def __init__(self, limits: Limits, now: float) -> None:
        self.quota = Quota(Rate(limits.messages_per_second, limits.burst), now)
        """What is sent is taken from its `left`; below zero, `note_over`."""
        self.is_slowed = False
        """The device owes: it is not read from until that has grown back."""
        self._over_quota_s = limits.over_quota_s
        self._over_since = now
        self._slowed_at: float | None = None
        """When it was seen slowed last, if that is not forgiven."""

    def note_over(self, now: float) -> None:
        """Look whether the device has really sent more than it may; then it is slowed."""
        self.quota.refill(now)
        if self.quota.left < 0:
            self.is_slowed = True
            if self._slowed_at is None:
                self._over_since = now
            self._slowed_at = now

    def look(self, now: float) -> bool:
        """Let the device be read again when there is quota; True if it has wanted too much for too long."""
        if self._slowed_at is None:
            return False
        if not self.is_slowed:
            # Of its burst nothing need be back: a device that just keeps its rate saves nothing up.
            if now - self._slowed_at >= FORGIVEN_S:
                self._slowed_at = None
            return False
        self._slowed_at = now
        self.quota.refill(now)
        self.is_slowed = self.quota.left < 0
        return now - self._over_since >= self._over_quota_s
