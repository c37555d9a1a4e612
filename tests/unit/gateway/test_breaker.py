"""Not calling a service that is away."""

from services.gateway.domain.breaker import Breaker


def test_after_three_failures_callers_are_turned_away_for_two_seconds() -> None:
    breaker = Breaker()
    for _ in range(3):
        assert breaker.wait_s(100.0) == 0
        breaker.failed(100.0)
    assert breaker.wait_s(101.5) == 0.5


def test_then_one_may_try_while_the_others_wait_on() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.failed(100.0)
    assert breaker.wait_s(102.0) == 0
    assert breaker.wait_s(102.1) > 0
    breaker.succeeded()
    assert breaker.wait_s(102.2) == 0


def test_one_success_forgets_the_failures() -> None:
    breaker = Breaker()
    breaker.failed(1.0)
    breaker.failed(1.0)
    breaker.succeeded()
    breaker.failed(1.0)
    assert breaker.wait_s(1.0) == 0
