"""A message that comes twice is taken once, in bounded memory."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.ingest.protocols.coap.duplicates import (
    EXCHANGE_LIFETIME_S,
    Address,
    Duplicates,
    key_of,
)

PUMP: Address = ("10.0.0.7", 40_000)
FAN: Address = ("10.0.0.8", 40_000)


def table(most: int = 1_000, most_bytes: int = 100_000) -> Duplicates:
    return Duplicates(most, most_bytes, now=0.0)


def test_a_message_is_known_by_its_address_and_its_bytes() -> None:
    known = table()
    known.remember(key_of(PUMP, b"7: 1"), b"D")
    assert known.answer(key_of(PUMP, b"7: 1")) == b"D"
    assert known.answer(key_of(FAN, b"7: 1")) is None
    # The message id came round, or the address is another device's now: another message.
    assert known.answer(key_of(PUMP, b"7: 2")) is None


def test_it_is_known_for_the_exchange_lifetime_and_not_for_ever() -> None:
    known = table()
    known.remember(7, b"D")
    for second in range(1, int(EXCHANGE_LIFETIME_S) + 1):
        known.tick(float(second))
        assert known.answer(7) == b"D", second
    for second in range(int(EXCHANGE_LIFETIME_S), 2 * int(EXCHANGE_LIFETIME_S)):
        known.tick(float(second))
    assert known.answer(7) is None
    assert len(known) == 0


@settings(deadline=None)
@given(st.lists(st.integers(), max_size=400))
def test_it_never_holds_more_than_it_may(messages: list[int]) -> None:
    known = table(most=40, most_bytes=400)
    for message in messages:
        known.remember(message, b"an answer of its own")
        assert len(known) <= 40


def test_the_newest_are_kept_when_there_are_too_many() -> None:
    known = table(most=100)
    for message in range(1_000):
        known.remember(message, b"D", is_shared=True)
    assert known.answer(950) == b"D"
    assert known.answer(1) is None
