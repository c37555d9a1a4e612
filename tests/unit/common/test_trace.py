import pytest

from libs.common.trace import (
    current_traceparent,
    enter_trace,
    leave_trace,
    new_traceparent,
    trace_id_of,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_the_trace_id_is_read_from_a_valid_header() -> None:
    assert trace_id_of(f"00-{TRACE}-00f067aa0ba902b7-01") == TRACE
    assert trace_id_of(f"01-{TRACE}-00f067aa0ba902b7-01-more") == TRACE
    assert trace_id_of(new_traceparent(TRACE)) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
    ],
)
def test_a_header_that_is_not_valid_has_no_trace(header: str | None) -> None:
    assert trace_id_of(header) is None


def test_a_trace_ends_with_the_work_and_the_outer_one_returns() -> None:
    outer = enter_trace("outer")
    inner = enter_trace("inner")
    assert current_traceparent() == "inner"
    leave_trace(inner)
    assert current_traceparent() == "outer"
    leave_trace(outer)
    assert current_traceparent() is None
