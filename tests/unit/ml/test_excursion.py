"""One anomaly for an excursion, however its points come."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.ml.domain.excursion import Excursion, Scored, State, follow


def run(
    state: State, zs: list[float], *, first: int = 0, calm: int = 3
) -> tuple[State, list[Excursion]]:
    ts = list(range(first, first + len(zs)))
    return follow(state, Scored(ts, ts, [z * 10 for z in zs], zs), threshold=3.5, calm_points=calm)


def test_usual_points_begin_nothing() -> None:
    state, touched = run(State(), [0, 1, 3.5])
    assert (state, touched) == (State(last_at=2, last_ts=2), [])


def test_a_value_that_dances_about_the_threshold_is_one_excursion() -> None:
    state, [excursion] = run(State(), [1, 4, 1, 9, 1, 1, 5, 1, 1, 1])
    assert excursion == Excursion(1, 40, 4, 90, 9, points=3, calm=3, ended_at=9)
    assert state == State(last_at=9, last_ts=9)


def test_after_it_has_ended_the_next_unusual_point_is_another() -> None:
    state, touched = run(State(), [4, 0, 0, 0, 6])
    assert [(e.began_at, e.ended_at) for e in touched] == [(0, 3), (4, None)]
    assert state.excursion == touched[1]


def test_late_and_repeated_points_change_nothing() -> None:
    state, _ = run(State(), [0, 4, 0], first=10)
    assert run(state, [9, 9, 9, 9], first=9) == (state, [])


@given(
    zs=st.lists(st.sampled_from([0.0, 3.5, 3.6, 9.0]), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    calm=st.integers(1, 4),
)
def test_however_the_points_are_divided_the_excursions_are_the_same(
    zs: list[float], cuts: list[int], calm: int
) -> None:
    whole, touched = run(State(), zs, calm=calm)
    state = State()
    last: dict[int, Excursion] = {}
    edges = sorted({0, len(zs), *(c for c in cuts if c < len(zs))})
    for begin, end in pairwise(edges):
        state, some = run(state, zs[begin:end], first=begin, calm=calm)
        last |= {e.began_at: e for e in some}
    assert state == whole
    assert list(last.values()) == touched
