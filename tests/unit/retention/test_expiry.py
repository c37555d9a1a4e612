"""When points have had their time."""

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.retention.domain.expiry import Keeping, expired_before, is_over, longest_days

NOON = datetime(2026, 6, 15, 12, 30, tzinfo=UTC)


def test_points_go_at_the_midnight_after_their_last_hour() -> None:
    assert expired_before(NOON, 1) == datetime(2026, 6, 14, tzinfo=UTC)
    assert expired_before(NOON, 30) == datetime(2026, 5, 16, tzinfo=UTC)


def test_a_day_is_over_when_its_last_point_is() -> None:
    assert is_over(date(2026, 6, 13), NOON, 1)
    assert not is_over(date(2026, 6, 14), NOON, 1)


@given(
    now=st.integers(1_600_000_000, 1_900_000_000).map(lambda s: datetime.fromtimestamp(s, UTC)),
    age_s=st.integers(0, 100 * 86_400),
    keep_days=st.integers(1, 60),
)
def test_nothing_goes_before_its_time_and_nothing_stays_a_day_longer(
    now: datetime, age_s: int, keep_days: int
) -> None:
    ts = now - timedelta(seconds=age_s)
    is_gone = ts < expired_before(now, keep_days)
    assert not is_gone or now - ts > timedelta(days=keep_days)
    assert is_gone or now - ts <= timedelta(days=keep_days + 1)
    assert is_over(ts.date(), now, keep_days) == is_gone


def test_a_day_stays_for_the_tenant_that_wants_it_longest() -> None:
    keepings = [Keeping(uuid4(), days, None) for days in (30, 400, 7)]
    assert longest_days(keepings, 365) == 400
    assert longest_days(keepings[:1], 365) == 30
    assert longest_days([], 365) == 365
