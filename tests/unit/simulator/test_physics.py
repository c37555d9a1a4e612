"""The models by themselves: their laws, and that no step size upsets them."""

from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.simulator.physics import (
    Bearing,
    Compressor,
    Motor,
    PumpCurve,
    Tank,
    Weather,
    parallel_flows,
    relax,
    town_demand,
)

CURVE = PumpCurve()


def test_a_lag_of_many_small_steps_equals_one_large_step() -> None:
    value = 20.0
    for _ in range(60):
        value = relax(value, 80, 1, 45)
    assert value == pytest.approx(relax(20, 80, 60, 45))


@given(speed=st.floats(0.5, 1.0), share=st.floats(0.1, 1.0))
def test_flow_head_and_power_follow_the_affinity_laws(speed: float, share: float) -> None:
    flow = CURVE.best_flow * share
    assert CURVE.head(flow * speed, speed) == pytest.approx(CURVE.head(flow, 1) * speed**2)
    assert CURVE.power(flow * speed, speed) == pytest.approx(CURVE.power(flow, 1) * speed**3)
    assert CURVE.flow(CURVE.head(flow, speed), speed) == pytest.approx(flow)


@given(flow=st.floats(0, 290), speed=st.floats(0.3, 1.0))
def test_no_pump_gives_more_power_than_it_takes(flow: float, speed: float) -> None:
    assert 0 <= CURVE.efficiency(flow, speed) < 0.85


@given(speeds=st.lists(st.floats(0, 1), max_size=4), lift=st.floats(5, 40))
def test_pumps_in_parallel_meet_the_pipes_resistance(speeds: list[float], lift: float) -> None:
    resistance = 6.2e-5
    flows = parallel_flows(CURVE, speeds, lift, resistance)
    head = lift + resistance * sum(flows) ** 2
    for flow, speed in zip(flows, speeds, strict=True):
        if flow > 1:
            assert CURVE.head(flow, speed) == pytest.approx(head, abs=0.01)


def test_a_second_pump_adds_less_than_the_first_gave() -> None:
    one = sum(parallel_flows(CURVE, [1.0], 18, 6.2e-5))
    two = sum(parallel_flows(CURVE, [1.0, 1.0], 18, 6.2e-5))
    assert one < two < 2 * one


def test_a_healthy_bearing_settles_warm_and_quiet() -> None:
    bearing = Bearing(temperature=18)
    for _ in range(600):
        bearing.step(1, speed=1, load=1, ambient=18, damage=0)
    assert 45 < bearing.temperature < 65
    assert bearing.vibration < 2.8


def test_a_motor_at_full_load_settles_below_the_limit_of_its_insulation() -> None:
    motor = Motor()
    for _ in range(4 * 3600):
        motor.ramp(1, 1.0)
        motor.step(1, shaft_power=motor.rated_power, voltage=400, ambient=25)
    assert 75 < motor.winding_temperature < 105
    assert 45 < motor.current < 65


def test_a_motor_that_is_switched_off_runs_down_and_takes_nothing() -> None:
    motor = Motor(speed=1.0)
    for _ in range(60):
        motor.ramp(1, 0.0)
        motor.step(1, 0.0, 400, 25)
    assert (motor.speed, motor.power, motor.current) == (0, 0, 0)


@given(
    flows=st.lists(st.tuples(st.floats(0, 900), st.floats(0, 900)), min_size=1, max_size=50),
    dt=st.floats(1, 600),
)
def test_a_tank_loses_no_water(flows: list[tuple[float, float]], dt: float) -> None:
    tank = Tank(area=50, height=4, volume=100)
    balance = tank.volume
    for inflow, wanted in flows:
        outflow = tank.deliverable(dt, wanted)
        tank.exchange(dt, inflow, outflow)
        balance += (inflow - outflow) * dt / 3600
        assert 0 <= tank.volume <= tank.capacity
    assert tank.volume + tank.overflowed == pytest.approx(balance, abs=1e-6)


@pytest.mark.parametrize("dt", [0.1, 1, 60, 3600])
def test_the_compressor_keeps_its_band_at_any_step(dt: float) -> None:
    compressor, rng = Compressor(), Random(1)
    steps, loaded = max(500, int(900 / dt)), 0
    for _ in range(steps):
        compressor.step(dt, 18, rng)
        loaded += compressor.loaded
        assert 6.5 - 1e-9 <= compressor.pressure <= 7.5 + 1e-9
    assert 0 < loaded < steps
    assert 0.1 < compressor.duty < 0.6


def test_the_town_sleeps_at_three_and_cooks_at_seven_thirty() -> None:
    night = town_demand(datetime(2025, 6, 3, 3, tzinfo=UTC))
    morning = town_demand(datetime(2025, 6, 3, 7, 30, tzinfo=UTC))
    assert night < 0.6 * morning


def test_a_year_of_weather_has_seasons_and_rain() -> None:
    weather, rng = Weather(), Random(1)
    by_month: dict[int, list[float]] = {}
    skies = set()
    for hour in range(365 * 24):
        now = datetime.fromtimestamp(1_735_689_600 + hour * 3600, UTC)
        weather.step(3600, now, rng)
        by_month.setdefault(now.month, []).append(weather.temperature)
        skies.add(weather.sky)
    mean = {month: sum(values) / len(values) for month, values in by_month.items()}
    assert mean[1] < 6 < 16 < mean[7]
    assert skies == {"clear", "cloudy", "rain"}
