"""How many requests are counted ahead."""

import pytest

from services.gateway.domain.lease import size_of_next
from services.gateway.domain.limit import Limit


@pytest.mark.parametrize(
    ("size", "used_s", "next_size"),
    [
        (0, None, 1),  # never seen
        (8, None, 1),  # they lapsed
        (8, 2.0, 1),  # that was long ago
        (1, 0.01, 2),  # at most twice as many
        (16, 0.01, 30),  # at most half a percent
        (30, 0.3, 30),  # a hundred a second
        (30, 0.9, 16),  # thirty a second
        (1, 0.9, 1),
    ],
)
def test_as_many_as_are_soon_used_and_at_most_half_a_percent(
    size: int, used_s: float | None, next_size: int
) -> None:
    assert size_of_next(Limit("user", 6000), size, used_s, lease_s=1.0) == next_size


def test_at_least_what_a_request_costs() -> None:
    assert size_of_next(Limit("user", 400, cost=5), 0, None, lease_s=1.0) == 5
