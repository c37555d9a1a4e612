"""What a device's own counter says is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.domain.ledger import (
    FURTHEST_AHEAD,
    FURTHEST_BACK,
    Counts,
    missing_before,
    newest,
)


def missing(*seqs: int) -> int:
    """Return how much a device's messages left out, in the order they came."""
    last, total = None, 0
    for seq in seqs:
        total += missing_before(seq, last)
        last = newest(seq, last)
    return total


@pytest.mark.parametrize(
    ("seqs", "count"),
    [
        ((7,), 0),
        ((7, 8, 9), 0),
        ((7, 9), 1),
        ((7, 9, 13), 4),
        ((7, 8, 8, 7, 9), 0),
        ((7, 9, 8, 10), 1),
        ((500, 501, 0, 1, 2), 0),
        ((500, 501, 1, 2, 4), 1),
        ((5_000, 5_001, 20, 21), 0),
        # A counter that wraps around, one that leaps, and what follows each.
        ((65_534, 65_535, 0, 1, 3), 1),
        ((7, 7 + FURTHEST_AHEAD), FURTHEST_AHEAD - 1),
        ((7, 8 + FURTHEST_AHEAD, 10 + FURTHEST_AHEAD), 1),
        ((0, 2**53, 0, 2**53), 0),
    ],
)
def test_what_is_left_out_is_missing(seqs: tuple[int, ...], count: int) -> None:
    assert missing(*seqs) == count


@given(st.lists(st.integers(2, FURTHEST_BACK), min_size=1, unique=True))
def test_what_comes_twice_is_never_missing(seqs: list[int]) -> None:
    seqs.sort()
    twice = [seq for seq in seqs for _ in range(2)]
    assert missing(*twice) == missing(*seqs) == seqs[-1] - seqs[0] + 1 - len(seqs)


@given(st.lists(st.builds(Counts, *[st.integers(0, 10**12)] * 5)))
def test_what_is_received_is_the_sum_of_what_became_of_it(hours: list[Counts]) -> None:
    total = sum(hours, Counts())
    assert total.received == total.accepted + total.duplicates + total.quarantined
    assert total.received == sum(hour.received for hour in hours)
