"""Credentials that are nobody's."""

import pytest

from libs.common.auth import guesses as module
from libs.common.auth.guesses import REFUSED_S, Guesses
from libs.common.errors import TooManyRequests, Unauthenticated

PLANT, ELSEWHERE = "198.51.100.7", "203.0.113.9"


def token(number: int) -> bytes:
    return number.to_bytes(32, "big")


def exhausted(per_minute: int = 3) -> Guesses:
    """Guesses after the plant had as many wrong ones as it may."""
    guesses = Guesses(per_minute)
    for number in range(per_minute):
        assert guesses.wait_s(token(number), PLANT, 0) == 0
        guesses.failed(token(number), PLANT, 0)
    return guesses


def test_an_origin_that_guesses_must_wait_and_another_need_not() -> None:
    guesses = exhausted(per_minute=3)
    assert guesses.wait_s(token(9), PLANT, 0) == 20
    assert guesses.wait_s(token(9), PLANT, 15) == 5
    assert guesses.wait_s(token(9), PLANT, 20) == 0
    assert guesses.wait_s(token(9), ELSEWHERE, 0) == 0


def test_a_credential_that_was_good_passes_whatever_its_neighbours_do() -> None:
    guesses = Guesses(3)
    guesses.passed(token(7))
    for number in range(50):
        guesses.failed(token(100 + number), PLANT, 0)
    assert guesses.wait_s(token(7), PLANT, 0) == 0
    # Until it is one itself.
    guesses.failed(token(7), PLANT, 0)
    assert guesses.wait_s(token(7), PLANT, 0) > 0


def test_what_was_refused_is_refused_again_for_a_while_without_counting() -> None:
    guesses = Guesses(3)
    guesses.failed(token(1), PLANT, 100)
    assert guesses.is_refused(token(1), 100 + REFUSED_S - 0.1)
    assert not guesses.is_refused(token(1), 100 + REFUSED_S)
    assert not guesses.is_refused(token(2), 100)


def test_nobody_is_shut_out_for_ever() -> None:
    guesses = Guesses(60)
    for second in range(600):
        for attempt in range(50):
            guess = token(1_000 * second + attempt)
            if guesses.wait_s(guess, PLANT, second) == 0:
                guesses.failed(guess, PLANT, second)
    # One second after the stranger has stopped, a device that nobody knows yet may try.
    assert guesses.wait_s(token(7), PLANT, 600) == 0


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    guesses = Guesses(3)
    most = 1_000
    monkeypatch.setattr(module, "REMEMBERED", most)
    for number in range(5 * most):
        guesses.failed(token(number), f"10.0.{number // 256}.{number % 256}", 0)
        guesses.passed(token(10_000 + number))
    assert len(guesses._refused) == len(guesses._budgets) == len(guesses._good) == most
    guesses.failed(token(1), PLANT, 61)
    assert len(guesses._refused) == len(guesses._budgets) == 1


async def test_only_what_may_be_looked_up_is_and_what_is_nobodys_counts() -> None:
    guesses, looks = Guesses(2), 0

    async def try_out(number: int, found: str | None) -> str:
        async def look() -> str:
            nonlocal looks
            looks += 1
            if found is None:
                raise Unauthenticated("it is nobody's")
            return found

        return await guesses.look_up(token(number), PLANT, "token", look)

    assert await try_out(1, "press") == "press"
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await try_out(2, None)
    assert looks == 2  # the first answer held for the others
    with pytest.raises(Unauthenticated):
        await try_out(3, None)
    with pytest.raises(TooManyRequests) as waits:
        await try_out(4, "pump")
    assert looks == 3
    assert waits.value.retry_after_s == pytest.approx(30, abs=1)
    # Who was good when last seen does not suffer.
    assert await try_out(1, "press") == "press"


async def test_a_look_up_that_fails_says_nothing_of_the_credential() -> None:
    guesses = Guesses(1)

    async def look() -> str:
        raise ConnectionRefusedError

    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await guesses.look_up(token(1), PLANT, "token", look)
