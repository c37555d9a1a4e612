"""Guessing is stopped from wherever it comes, and locks nobody out of their own account."""

from collections import Counter

import pytest

from libs.common.errors import TooManyRequests, Unauthenticated
from services.gateway.domain.limit import Limit, Standing
from services.gateway.usecases.attempts import AttemptLimits, Attempts

ANN = "ann@plant.example"
HOME, OFFICE = "198.51.100.1", "198.51.100.2"


class Counts:
    """Counts without forgetting."""

    def __init__(self) -> None:
        self.hits: Counter[tuple[str, str]] = Counter()

    async def hit(self, limit: Limit, key: str) -> Standing:
        standing = await self.standing(limit, key)
        self.hits[limit.name, key] += 1
        return standing

    async def standing(self, limit: Limit, key: str) -> Standing:
        left = limit.requests - self.hits[limit.name, key]
        return Standing(limit, left > 0, left, limit.window_s)


class Known:
    """Remembers from where accounts were logged in to."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, str]] = set()

    async def is_familiar(self, email: str, origin: str) -> bool:
        return (email, origin) in self.pairs

    async def note_familiar(self, email: str, origin: str) -> None:
        self.pairs.add((email, origin))


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def attempts(counts: Counts) -> Attempts:
    limits = AttemptLimits(
        attempts=Limit("login", 5),
        failures_of_address=Limit("of-address", 30, 600),
        failures_of_account=Limit("of-account", 100, 3600),
        requests_of_address=Limit("requests", 20, 600),
        mails_to_address=Limit("mails", 5, 3600),
    )
    return Attempts(counts, Known(), limits)


async def log_in(attempts: Attempts, account: str, origin: str) -> None:
    async with attempts.attempt(account, origin):
        pass
    await attempts.note_success(account, origin)


async def fail(attempts: Attempts, account: str, origin: str) -> None:
    with pytest.raises(Unauthenticated):
        async with attempts.attempt(account, origin):
            raise Unauthenticated("wrong")


async def is_stopped(attempts: Attempts, account: str, origin: str) -> None:
    with pytest.raises(TooManyRequests) as stopped:
        async with attempts.attempt(account, origin):
            raise AssertionError("the password was looked at")
    assert stopped.value.retry_after_s is not None


async def test_one_address_tries_few_times_a_minute_however_the_account_is_spelled(
    attempts: Attempts,
) -> None:
    for spelled in (ANN, ANN.upper(), f" {ANN} ", ANN, ANN):
        await fail(attempts, spelled, HOME)
    await is_stopped(attempts, ANN, HOME)
    await log_in(attempts, ANN, OFFICE)


async def test_one_password_is_not_tried_on_many_accounts(attempts: Attempts) -> None:
    for number in range(30):
        await fail(attempts, f"user-{number}@plant.example", HOME)
    await is_stopped(attempts, "user-30@plant.example", HOME)
    await log_in(attempts, "user-30@plant.example", OFFICE)


async def test_many_machines_that_try_one_account_stop_each_other_and_not_its_owner(
    attempts: Attempts,
) -> None:
    await log_in(attempts, ANN, HOME)
    for number in range(100):
        await fail(attempts, ANN, f"203.0.113.{number}")
    await is_stopped(attempts, ANN, "203.0.113.100")
    await log_in(attempts, ANN, HOME)
    # Somewhere new the owner waits, or proves the address by mail.
    await is_stopped(attempts, ANN, OFFICE)
    await attempts.note_success(ANN, OFFICE)
    await log_in(attempts, ANN, OFFICE)


async def test_a_neighbour_who_guesses_does_not_stop_who_works_there(attempts: Attempts) -> None:
    await log_in(attempts, ANN, OFFICE)
    for number in range(30):
        await fail(attempts, f"user-{number}@plant.example", OFFICE)
    await is_stopped(attempts, "new@plant.example", OFFICE)
    await log_in(attempts, ANN, OFFICE)


async def test_logging_in_is_no_failure_and_people_are_named_by_hashes(
    attempts: Attempts, counts: Counts
) -> None:
    for number in range(40):
        await log_in(attempts, f"user-{number}@plant.example", OFFICE)
    assert {limit for limit, _ in counts.hits} == {"login"}
    await fail(attempts, ANN, HOME)
    assert not any("ann" in key for _, key in counts.hits)


async def test_mail_to_one_address_ends_in_silence_and_from_one_address_with_a_word(
    attempts: Attempts,
) -> None:
    sent = [await attempts.request(ANN, f"203.0.113.{number}") for number in range(7)]
    assert sent == [True] * 5 + [False] * 2
    for number in range(20):
        await attempts.request(f"user-{number}@plant.example", HOME)
    with pytest.raises(TooManyRequests):
        await attempts.request("another@plant.example", HOME)
