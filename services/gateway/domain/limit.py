"""How much one may ask for in a while, and how that is told.

The headers are those of draft-ietf-httpapi-ratelimit-headers.
"""

import math
from dataclasses import dataclass

WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests a minute, moving."""

    name: str
    per_minute: int

    @property
    def policy(self) -> bytes:
        """The value of the header RateLimit-Policy."""
        return f'"{self.name}";q={self.per_minute};w={WINDOW_S}'.encode()


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands against a limit."""

    limit: Limit
    is_allowed: bool
    remaining: int
    reset_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell it."""
        wait_s = max(0, math.ceil(self.reset_s))
        value = f'"{self.limit.name}";r={max(0, self.remaining)};t={wait_s}'.encode()
        return [(b"ratelimit-policy", self.limit.policy), (b"ratelimit", value)]
