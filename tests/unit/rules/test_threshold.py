from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Invalid
from services.rules.domain.firing import Cleared, Fired, Outcome, Points, State
from services.rules.domain.threshold import Operator, Threshold

AT_ONCE = timedelta()
NEW = State()
ABOVE_90 = Threshold(Operator.GT, 90.0)
ABOVE_90_CLEAR_80 = Threshold(Operator.GT, 90.0, 80.0)


def evaluate(
    threshold: Threshold,
    *points: tuple[int, float],
    hold: timedelta = AT_ONCE,
    state: State = NEW,
) -> tuple[State, list[Outcome]]:
    return threshold.evaluate(
        hold, state, Points.on_time([t for t, _ in points], [v for _, v in points])
    )


def test_it_fires_once_by_the_point_that_breaks_it_and_not_again_while_broken() -> None:
    state, outcomes = evaluate(ABOVE_90, (1, 90.0), (2, 90.1), (3, 95.0), (4, 99.0))
    assert outcomes == [Fired(2, 2, 90.1)]
    assert state == State(last_at=4, last_ts=4, fired_at=2)


def test_between_the_two_limits_it_stays_as_it_was() -> None:
    _, outcomes = evaluate(
        ABOVE_90_CLEAR_80, (1, 85.0), (2, 91.0), (3, 85.0), (4, 80.1), (5, 80.0), (6, 85.0)
    )
    assert outcomes == [Fired(2, 2, 91.0), Cleared(2, 5, 5, 80.0)]


@pytest.mark.parametrize(
    ("word", "quiet", "breaking"),
    [
        ("gt", 5.0, 5.1),
        ("gte", 4.9, 5.0),
        ("lt", 5.0, 4.9),
        ("lte", 5.1, 5.0),
        ("eq", 5.1, 5.0),
        ("neq", 5.0, 5.1),
    ],
)
def test_each_operator_trips_and_clears(word: str, quiet: float, breaking: float) -> None:
    threshold = Threshold(Operator(word), 5.0)
    _, outcomes = evaluate(threshold, (1, quiet), (2, breaking), (3, quiet))
    assert outcomes == [Fired(2, 2, breaking), Cleared(2, 3, 3, quiet)]


def test_with_a_hold_it_fires_by_the_first_point_after_it_has_held_that_long() -> None:
    hold = timedelta(microseconds=10)
    _, outcomes = evaluate(ABOVE_90, (0, 91.0), (9, 95.0), (11, 93.0), (12, 93.0), hold=hold)
    assert outcomes == [Fired(11, 11, 93.0)]


def test_a_dip_begins_the_hold_anew() -> None:
    hold = timedelta(microseconds=10)
    points = ((0, 91.0), (8, 90.0), (9, 91.0), (18, 91.0))
    state, outcomes = evaluate(ABOVE_90, *points, hold=hold)
    assert outcomes == []
    assert state == State(last_at=18, last_ts=18, since=9)
    _, outcomes = evaluate(ABOVE_90, (19, 91.0), hold=hold, state=state)
    assert outcomes == [Fired(19, 19, 91.0)]


def test_a_late_point_neither_fires_nor_clears_nor_breaks_a_hold() -> None:
    _, outcomes = evaluate(ABOVE_90, (10, 50.0), (9, 99.0), (10, 99.0))
    assert outcomes == []
    _, outcomes = evaluate(ABOVE_90, (10, 99.0), (9, 50.0), (10, 50.0))
    assert outcomes == [Fired(10, 10, 99.0)]
    hold = timedelta(microseconds=10)
    _, outcomes = evaluate(ABOVE_90, (0, 99.0), (5, 99.0), (4, 50.0), (10, 99.0), hold=hold)
    assert outcomes == [Fired(10, 10, 99.0)]


def test_the_same_points_again_change_nothing() -> None:
    points = ((1, 91.0), (2, 70.0), (3, 95.0))
    state, outcomes = evaluate(ABOVE_90_CLEAR_80, *points)
    assert len(outcomes) == 3
    assert evaluate(ABOVE_90_CLEAR_80, *points, state=state) == (state, [])


@pytest.mark.parametrize(
    ("word", "wrong", "right"),
    [("gt", 90.1, 90.0), ("gte", 90.1, 80.0), ("lt", 89.9, 90.0), ("lte", 89.9, 95.0)],
)
def test_the_clearing_limit_must_lie_on_the_clearing_side(
    word: str, wrong: float, right: float
) -> None:
    Threshold(Operator(word), 90.0, right).check()
    with pytest.raises(Invalid) as refused:
        Threshold(Operator(word), 90.0, wrong).check()
    assert refused.value.errors[0].pointer == "#/condition/clear_value"


@pytest.mark.parametrize("word", ["eq", "neq"])
def test_equality_has_no_clearing_limit(word: str) -> None:
    with pytest.raises(Invalid):
        Threshold(Operator(word), 90.0, 90.0).check()


finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@st.composite
def thresholds(draw: st.DrawFn) -> Threshold:
    word = draw(st.sampled_from(Operator))
    value = draw(st.sampled_from([0.0, 1.0, 2.0]) | finite)
    match word:
        case Operator.GT | Operator.GTE:
            clear = draw(st.none() | st.floats(max_value=value, min_value=-1e300))
        case Operator.LT | Operator.LTE:
            clear = draw(st.none() | st.floats(min_value=value, max_value=1e300))
        case _:
            clear = None
    threshold = Threshold(word, value, clear)
    threshold.check()
    return threshold


@given(thresholds(), finite, st.integers(2, 20), st.integers(0, 5))
def test_a_constant_value_never_flaps(
    threshold: Threshold, value: float, count: int, hold_us: int
) -> None:
    points = [(ts, value) for ts in range(count)]
    _, outcomes = evaluate(threshold, *points, hold=timedelta(microseconds=hold_us))
    assert len(outcomes) <= 1
    assert not any(isinstance(outcome, Cleared) for outcome in outcomes)


@given(
    thresholds(),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]))),
    st.lists(st.integers(0, 100)),
    st.integers(0, 10),
)
def test_however_the_points_are_batched_the_same_happens(
    threshold: Threshold, points: list[tuple[int, float]], cuts: list[int], hold_us: int
) -> None:
    hold = timedelta(microseconds=hold_us)
    whole = evaluate(threshold, *points, hold=hold)
    state, outcomes = State(), []
    edges = [0, *sorted(min(cut, len(points)) for cut in cuts), len(points)]
    for start, end in pairwise(edges):
        state, more = evaluate(threshold, *points[start:end], hold=hold, state=state)
        outcomes += more
    assert (state, outcomes) == whole


@given(
    thresholds(),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]))),
    st.integers(0, 10),
)
def test_firings_and_clearings_take_turns_and_name_each_other(
    threshold: Threshold, points: list[tuple[int, float]], hold_us: int
) -> None:
    _, outcomes = evaluate(threshold, *points, hold=timedelta(microseconds=hold_us))
    for place, outcome in enumerate(outcomes):
        if place % 2 == 0:
            assert isinstance(outcome, Fired)
        else:
            assert isinstance(outcome, Cleared)
            assert outcome.fired_at == outcomes[place - 1].ts < outcome.ts


def test_it_says_in_words_what_it_watches_for() -> None:
    assert ABOVE_90.in_words() == "above 90"
    assert Threshold(Operator.LTE, -0.25).in_words() == "at or below -0.25"


RECEIVED = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 3, 9, 20]),  # how long after the one before it was received
        st.integers(-12, 12),  # how far its own time is from that
        st.sampled_from([0.0, 1.0, 2.0]),
    ),
    max_size=40,
)
LATENESS_US = 5


def as_received(points: list[tuple[int, int, float]]) -> Points:
    received, ts, now = [], [], 100
    for pause, offset, _ in points:
        now += pause
        received.append(now)
        ts.append(now + offset)
    lateness = timedelta(microseconds=LATENESS_US)
    return Points.received(ts, [v for *_, v in points], received, lateness)


def part_of(points: Points, begin: int, end: int) -> Points:
    return Points(
        points.ts[begin:end], points.values[begin:end], points.at[begin:end], points.late[begin:end]
    )


ABOVE_1 = Threshold(Operator.GT, 1.0)


@given(RECEIVED, st.integers(0, 10))
def test_late_points_neither_fire_nor_clear_and_a_condition_has_held_for_as_long_as_it_must(
    sent: list[tuple[int, int, float]], hold_us: int
) -> None:
    points = as_received(sent)
    _, outcomes = ABOVE_1.evaluate(timedelta(microseconds=hold_us), NEW, points)
    looked_at: dict[tuple[int, int], float] = {}
    newest = (0, 0)
    late = set()
    for at, ts, value, is_late in zip(
        points.at, points.ts, points.values, points.late, strict=True
    ):
        if (at, ts) > newest:  # what comes again is not looked at, however late it is then
            newest = (at, ts)
            looked_at[newest] = value
            if is_late:
                late.add(newest)
    for outcome in outcomes:
        assert (outcome.at, outcome.ts) not in late
        if isinstance(outcome, Fired):
            within = [
                value
                for (at, ts), value in looked_at.items()
                if outcome.at - hold_us < at and (at, ts) <= (outcome.at, outcome.ts)
            ]
            assert all(value > 1.0 for value in within)


@given(RECEIVED, st.integers(0, 10), st.lists(st.integers(0, 40)))
def test_however_points_of_a_wrong_clock_are_batched_the_same_happens_and_twice_is_once(
    sent: list[tuple[int, int, float]], hold_us: int, cuts: list[int]
) -> None:
    hold, points = timedelta(microseconds=hold_us), as_received(sent)
    whole = ABOVE_1.evaluate(hold, NEW, points)
    state, outcomes = NEW, []
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    for begin, end in pairwise(edges):
        for _ in range(2):
            state, more = ABOVE_1.evaluate(hold, state, part_of(points, begin, end))
            outcomes += more
    assert (state, outcomes) == whole


@given(st.integers(1, 1000), st.integers(1, 50))
def test_a_point_ahead_of_its_time_hides_none_that_is_received_after_it(
    ahead_us: int, later_us: int
) -> None:
    lateness = timedelta(microseconds=LATENESS_US)
    points = Points.received(
        [100 + ahead_us, 100 + later_us], [0.0, 2.0], [100, 100 + later_us], lateness
    )
    _, outcomes = ABOVE_1.evaluate(AT_ONCE, NEW, points)
    assert outcomes == [Fired(100 + later_us, 100 + later_us, 2.0)]


def test_how_long_a_condition_has_held_is_counted_from_the_receipt_of_a_point_ahead() -> None:
    lateness, hold = timedelta(microseconds=5), timedelta(microseconds=10)
    points = Points.received([1_000, 105, 110], [2.0, 2.0, 2.0], [100, 105, 110], lateness)
    _, outcomes = ABOVE_1.evaluate(hold, NEW, points)
    assert outcomes == [Fired(110, 110, 2.0)]


def test_a_late_point_clears_nothing() -> None:
    points = Points.received([0, 4], [2.0, 0.0], [0, 11], timedelta(microseconds=5))
    _, outcomes = ABOVE_1.evaluate(AT_ONCE, NEW, points)
    assert outcomes == [Fired(0, 0, 2.0)]


def test_a_late_point_shows_that_a_condition_did_not_hold_all_the_time() -> None:
    lateness, hold = timedelta(microseconds=5), timedelta(microseconds=10)
    values = [2.0, 0.0, 2.0, 2.0]
    points = Points.received([0, 4, 12, 22], values, [0, 11, 12, 22], lateness)
    _, outcomes = ABOVE_1.evaluate(hold, NEW, points)
    assert outcomes == [Fired(22, 22, 2.0)]


def test_late_points_do_not_begin_how_long_a_condition_has_held() -> None:
    lateness, hold = timedelta(microseconds=5), timedelta(microseconds=10)
    points = Points.received([0, 50, 55, 60], [2.0, 2.0, 2.0, 2.0], [50, 50, 55, 60], lateness)
    _, outcomes = ABOVE_1.evaluate(hold, NEW, points)
    assert outcomes == [Fired(60, 60, 2.0)]
