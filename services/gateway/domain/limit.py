"""How much one may ask for in a while, and how that is told.

The headers are those of draft-ietf-httpapi-ratelimit-headers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Limit:
    """So many requests in a window that moves. A request may count as several, by its `cost`."""

    name: str
    requests: int
    window_s: int = MINUTE_S
    cost: int = 1
    bucket: str = ""
    """What is counted together; by itself the limit's name."""
    policy: bytes = field(init=False, compare=False)
    """The value of the header RateLimit-Policy."""

    def __post_init__(self) -> None:
        policy = f'"{self.name}";q={self.requests};w={self.window_s}'.encode()
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "bucket", self.bucket or self.name)

    def divided(self, by: int) -> "Limit":
        """Return a stricter limit; one request, whatever it costs, is always within it."""
        return replace(self, requests=max(self.cost, self.requests // by))

    def __str__(self) -> str:
        unit = {1: "a second", MINUTE_S: "a minute", 3600: "an hour", 86400: "a day"}
        return f"{self.requests} requests {unit.get(self.window_s, f'in {self.window_s} s')}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a caller stands against a limit."""

    limit: Limit
    is_allowed: bool
    remaining: int
    reset_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell it."""
        return told([self])


def told(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """Return the headers that tell where a caller stands against all limits that apply."""
    if not standings:
        return []
    values = []
    for standing in standings:
        wait_s = max(0, math.ceil(standing.reset_s))
        values.append(f'"{standing.limit.name}";r={max(0, standing.remaining)};t={wait_s}')
    return [
        (b"ratelimit-policy", b", ".join([standing.limit.policy for standing in standings])),
        (b"ratelimit", ", ".join(values).encode()),
    ]
