"""How many requests a replica counts ahead, to give them out by itself."""

from services.gateway.domain.limit import Limit

LEASED_FROM = 400
"""Smaller limits are counted one by one."""
SHARE = 200
"""Of a limit a replica has at most one part in so many ahead: two replicas, one percent."""


def size_of_next(limit: Limit, size: int, used_s: float | None, *, lease_s: float) -> int:
    """Return how many requests to count ahead.

    `size` is how many it were the last time (0: never), `used_s` in what time they were used up (None:
    they lapsed). As many as will be used in half the time they last, so that hardly any lapses, and
    never more than twice as many as before.
    """
    most = max(limit.cost, limit.requests // SHARE)
    if used_s is None or used_s > lease_s or size == 0:
        return limit.cost
    expected = size / max(used_s, 0.001) * lease_s / 2
    return max(limit.cost, min(most, size * 2, int(expected)))
