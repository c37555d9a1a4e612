"""The part of time that is asked for."""

from datetime import UTC, datetime, timedelta

import pytest

from libs.common.errors import Invalid
from services.analytics.domain.span import Span, span_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_it_is_the_last_hour_unless_said_otherwise() -> None:
    assert span_of(None, None, now=NOON) == Span(NOON - HOUR, NOON)
    assert span_of(None, NOON - HOUR, now=NOON) == Span(NOON - 2 * HOUR, NOON - HOUR)
    assert span_of(NOON - 5 * HOUR, None, now=NOON) == Span(NOON - 5 * HOUR, NOON)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (NOON, NOON),
        (NOON + HOUR, NOON),
        (NOON + HOUR, None),
        (datetime(1, 1, 1, tzinfo=UTC), NOON),
        (NOON, datetime(9999, 12, 31, tzinfo=UTC)),
    ],
)
def test_a_span_that_runs_backwards_or_out_of_the_calendar_is_refused(
    start: datetime, end: datetime | None
) -> None:
    with pytest.raises(Invalid):
        span_of(start, end, now=NOON)


def test_it_touches_one_bucket_more_than_fit_in() -> None:
    assert Span(NOON, NOON + HOUR).buckets(timedelta(minutes=7)) == 10
