"""The station: river to raw-water tank, three pumps up to the clear-water tank, and on to the town.

    inlet valve > flow meter > raw tank > pumps 1..3 > chlorine > clear tank > flow meter > town

Fourteen devices that share one hydraulic and one electric system: a pump that runs faster drains
one tank, fills the other, warms its motor and shows on the power meter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import pi, sqrt
from random import Random

from clients.simulator.commands import CommandFailed, Params
from clients.simulator.faults import Fault, FaultKind, FaultPlan
from clients.simulator.metrics import METRICS, Metric, Values
from clients.simulator.physics import (
    BAR_PER_METRE,
    Bearing,
    Compressor,
    Dosing,
    Motor,
    PumpCurve,
    Tank,
    Wander,
    Weather,
    clamp,
    hydraulic_power,
    parallel_flows,
    relax,
    town_demand,
)

DEVICES: dict[str, str] = {
    "pump-1": "pump",
    "pump-2": "pump",
    "pump-3": "pump",
    "motor-1": "motor",
    "motor-2": "motor",
    "motor-3": "motor",
    "raw-water-tank": "tank",
    "clear-water-tank": "tank",
    "compressor-1": "compressor",
    "inlet-flow-meter": "flow-meter",
    "outlet-flow-meter": "flow-meter",
    "power-meter": "power-meter",
    "weather-station": "weather-station",
    "dosing-unit": "dosing-unit",
}
"""Device name -> device type."""

_CURVE = PumpCurve()
_LIFT = 18.0
"""m from the floor of the raw tank up to the floor of the clear tank."""
_RESISTANCE = 6.2e-5
"""m of head lost in the rising main per (m³/h)²."""
_PIPE_AREA = pi * 0.15**2
"""m², of a DN 300 pipe."""
_WARM_UP = timedelta(hours=1)


@dataclass(slots=True)
class PumpSet:
    """A pump and the motor that drives it."""

    motor: Motor = field(default_factory=Motor)
    bearing: Bearing = field(default_factory=Bearing)
    wanted: bool = True
    """What the level controller asks for."""
    ordered: bool | None = None
    """What an operator has ordered, which counts more; None: the controller decides."""
    flow: float = 0.0
    """m³/h."""

    @property
    def should_run(self) -> bool:
        """Whether it is to run, by the operator's order or else the controller's."""
        return self.wanted if self.ordered is None else self.ordered

    @property
    def running(self) -> bool:
        """Whether the shaft turns."""
        return self.motor.speed > 0

    @property
    def state(self) -> str:
        """`running`, `starting`, `stopping` or `stopped`."""
        if self.should_run:
            return "running" if self.motor.speed > 0.5 else "starting"
        return "stopping" if self.running else "stopped"


_PUMP_ORDERS = {"start": True, "stop": False, "auto": None}


class Plant:
    """The whole station. The same seed, start and steps give the same readings.

    `faults` count from `start`, and so do those `by_chance`, which come in the order in which they
    begin. Raises ValueError when one of `faults` names a device or metric that is not there.
    """

    def __init__(
        self,
        seed: int,
        start: datetime,
        faults: Sequence[Fault] = (),
        by_chance: Iterable[Fault] = (),
    ) -> None:
        for fault in faults:
            _check_fault(fault)
        self._rng = Random(seed)
        self._sensors = Random(seed + 1)
        self._plan = FaultPlan(faults, iter(by_chance), Random(seed + 2))
        self.raw = Tank(area=250, height=5, volume=875)
        self.clear = Tank(area=250, height=5, volume=800)
        self.pumps = [PumpSet(), PumpSet(), PumpSet(wanted=False)]
        self.compressor = Compressor()
        self.weather = Weather()
        self.dosing = Dosing()
        self.inlet_open = True
        self.inflow = 0.0
        """m³/h from the river."""
        self.transfer = 0.0
        """m³/h from the raw tank to the clear tank."""
        self.outflow = 0.0
        """m³/h to the town."""
        self.water_in = 0.0
        """m³ since the start, as `water_out`."""
        self.water_out = 0.0
        self.energy = 184_000.0
        """kWh on the meter."""
        self.power = 0.0
        """kW."""
        self._water_temperature = 10.0
        self._hall = 18.0
        self._voltage = Wander(tau=120, sigma=2.5)
        self._frequency = Wander(tau=30, sigma=0.015)
        self._appetite = Wander(tau=900, sigma=18)
        self._river = Wander(tau=1800, sigma=12)
        self.elapsed = 0.0
        """Seconds since the start."""
        # Bearings, windings and levels settle, as if the station had long been running.
        before, dt = start - _WARM_UP, 10.0
        self._water_temperature = self._season(before)
        for turn in range(int(_WARM_UP.total_seconds() / dt)):
            self._advance(dt, before + timedelta(seconds=dt * (turn + 1)))
        self.elapsed = 0.0

    def step(self, dt: float, now: datetime) -> dict[str, Values]:
        """Advance by `dt` seconds to `now` and return what each device reads: metric -> value.

        Numbers are floats in the units of METRICS and always finite; a device in a dropout is absent.
        """
        self._plan.let_happen(self.elapsed + dt)
        self._advance(dt, now)
        readings: dict[str, Values] = {}
        for device, truth in self._truths().items():
            metrics = METRICS[DEVICES[device]]
            values = self._plan.distort(
                device, metrics, self._measure(metrics, truth), dt, self.elapsed
            )
            if values:
                readings[device] = values
        return readings

    def command(self, device: str, name: str, params: Params) -> object:
        """Do what an operator orders: `start`, `stop` and `auto` of a pump, `set_inlet` of the raw
        tank (`{"open": true}`). Returns the state that follows; raises CommandFailed.
        """
        if device.startswith("pump-") and name in _PUMP_ORDERS:
            pump = self.pumps[int(device.removeprefix("pump-")) - 1]
            pump.ordered = _PUMP_ORDERS[name]
            return {"mode": "auto" if pump.ordered is None else "manual"}
        if device == "raw-water-tank" and name == "set_inlet":
            wanted = params.get("open")
            if not isinstance(wanted, bool):
                raise CommandFailed('set_inlet takes {"open": true} or {"open": false}')
            self.inlet_open = wanted
            return {"open": wanted}
        raise CommandFailed(f"a {DEVICES[device]} does not know the command {name!r}")

    def active_faults(self) -> list[Fault]:
        """Return the faults that act now."""
        return self._plan.active(self.elapsed)

    def _advance(self, dt: float, now: datetime) -> None:
        self.elapsed += dt
        self.weather.step(dt, now, self._rng)
        # Indoors it is milder than outdoors.
        self._hall = relax(self._hall, 17 + 0.3 * (self.weather.temperature - 12), dt, 3600)
        self._water_temperature = relax(self._water_temperature, self._season(now), dt, 86400)
        self._control()
        self._move_water(dt, now)
        self._move_current(dt)
        self.compressor.step(dt, self._hall, self._rng)
        self.dosing.step(dt, self.transfer, self._rng)

    def _season(self, now: datetime) -> float:
        """The river's temperature: the air's, without its days."""
        return clamp(4 + 0.6 * self.weather.temperature, 2, 24)

    def _control(self) -> None:
        """Level control: two duty pumps, a third that helps at the peaks, an inlet valve with a band."""
        level = self.clear.level
        for pump in self.pumps[:2]:
            if self.raw.level < 8 or level > 97:
                pump.wanted = False
            elif self.raw.level > 15 and level < 92:
                pump.wanted = True
        helper = self.pumps[2]
        if level < 57 and self.raw.level > 25:
            helper.wanted = True
        elif level > 64 or self.raw.level < 15:
            helper.wanted = False
        if self.raw.level > 92:
            self.inlet_open = False
        elif self.raw.level < 80:
            self.inlet_open = True

    def _move_water(self, dt: float, now: datetime) -> None:
        wanted = clamp(0.86 + 0.012 * (65 - self.clear.level), 0.75, 1.0)
        speeds = [pump.motor.ramp(dt, wanted if pump.should_run else 0.0) for pump in self.pumps]
        lift = _LIFT + self.clear.depth - self.raw.depth
        flows = parallel_flows(_CURVE, speeds, lift, _RESISTANCE)

        river = max(0.0, 520 + self._river.step(dt, self._rng))
        self.inflow = river if self.inlet_open else 0.0
        total = sum(flows)
        possible = self.raw.deliverable(dt, total)
        share = possible / total if total > 0 else 0.0
        for pump, flow in zip(self.pumps, flows, strict=True):
            pump.flow = flow * share
        self.transfer = possible
        appetite = max(0.0, town_demand(now) + self._appetite.step(dt, self._rng))
        self.outflow = self.clear.deliverable(dt, appetite)

        self.raw.exchange(dt, self.inflow, self.transfer)
        self.clear.exchange(dt, self.transfer, self.outflow)
        self.water_in += self.inflow * dt / 3600
        self.water_out += self.outflow * dt / 3600

        for number, pump in enumerate(self.pumps, start=1):
            speed = pump.motor.speed
            pump.bearing.step(
                dt,
                speed,
                _CURVE.load(pump.flow, speed),
                self._hall,
                self._plan.damage(f"pump-{number}", self.elapsed),
            )

    def _move_current(self, dt: float) -> None:
        voltage = 400 + self._voltage.step(dt, self._rng)
        self._frequency.step(dt, self._rng)
        for pump in self.pumps:
            # A worn bearing brakes: the motor pays for it.
            shaft = _CURVE.power(pump.flow, pump.motor.speed) + 1.5 * (
                pump.bearing.wear * pump.motor.speed
            )
            pump.motor.step(dt, shaft, voltage, self._hall)
        lighting = 1.8
        self.power = sum(pump.motor.power for pump in self.pumps)
        self.power += self._compressor_power() + lighting
        self.energy += self.power * dt / 3600

    def _compressor_power(self) -> float:
        return 9.2 if self.compressor.loaded else 2.6

    def _truths(self) -> dict[str, Values]:
        voltage = 400 + self._voltage.value
        truths: dict[str, Values] = {}
        for number, pump in enumerate(self.pumps, start=1):
            truths[f"pump-{number}"] = self._pump_truth(pump)
            truths[f"motor-{number}"] = {
                "current": pump.motor.current,
                "voltage": voltage,
                "winding_temperature": pump.motor.winding_temperature,
                "speed": pump.motor.speed * _CURVE.rated_rpm,
                "power": pump.motor.power,
                "load": pump.motor.load * 100,
                "running": pump.running,
                "state": pump.state,
            }
        truths["raw-water-tank"] = self._tank_truth(self.raw, self.inflow, self.transfer)
        truths["raw-water-tank"]["valve_open"] = self.inlet_open
        truths["clear-water-tank"] = self._tank_truth(self.clear, self.transfer, self.outflow)
        truths["inlet-flow-meter"] = self._flow_truth(self.inflow, self.water_in)
        truths["outlet-flow-meter"] = self._flow_truth(self.outflow, self.water_out)
        power = self._compressor_power()
        truths["compressor-1"] = {
            "pressure": self.compressor.pressure,
            "oil_temperature": self.compressor.oil_temperature,
            "current": power * 1000 / (sqrt(3) * voltage * 0.82),
            "duty_cycle": self.compressor.duty * 100,
            "power": power,
            "running": True,
            "state": "loaded" if self.compressor.loaded else "unloaded",
        }
        power_factor = 0.84 + 0.04 * min(1.0, self.power / 60)
        truths["power-meter"] = {
            "power": self.power,
            "energy": self.energy,
            "voltage": voltage,
            "current": self.power * 1000 / (sqrt(3) * voltage * power_factor),
            "power_factor": power_factor,
            "frequency": 50 + self._frequency.value,
            "breaker_closed": True,
            "state": "mains",
        }
        truths["weather-station"] = {
            "temperature": self.weather.temperature,
            "humidity": self.weather.humidity,
            "pressure": self.weather.pressure,
            "wind_speed": self.weather.wind,
            "rain": self.weather.rain,
            "raining": self.weather.rain > 0,
            "state": self.weather.sky,
        }
        truths["dosing-unit"] = {
            "chlorine": self.dosing.chlorine,
            "ph": self.dosing.ph,
            "turbidity": self.dosing.turbidity,
            "dose_rate": self.dosing.rate,
            "stock": self.dosing.stock,
            "running": self.dosing.rate > 0,
            "mode": "auto",
        }
        return truths

    def _pump_truth(self, pump: PumpSet) -> Values:
        speed = pump.motor.speed
        head = _CURVE.head(pump.flow, speed) if pump.running else 0.0
        suction = BAR_PER_METRE * (1 + self.raw.depth)
        shaft = _CURVE.power(pump.flow, speed)
        efficiency = hydraulic_power(pump.flow, head) / shaft if shaft > 0 else 0.0
        return {
            "bearing_temperature": pump.bearing.temperature,
            "vibration": pump.bearing.vibration,
            "flow": pump.flow,
            "suction_pressure": suction,
            "discharge_pressure": suction + BAR_PER_METRE * max(0.0, head),
            "speed": speed * _CURVE.rated_rpm,
            "power": shaft,
            "efficiency": max(0.0, efficiency * 100),
            "running": pump.running,
            "valve_open": pump.flow > 0,
            "mode": "auto" if pump.ordered is None else "manual",
        }

    def _tank_truth(self, tank: Tank, inflow: float, outflow: float) -> Values:
        gain = inflow - outflow
        return {
            "level": tank.level,
            "volume": tank.volume,
            "inflow": inflow,
            "outflow": outflow,
            "temperature": self._water_temperature,
            "high_level": tank.level > 95,
            "low_level": tank.level < 10,
            "state": "steady" if abs(gain) < 5 else "filling" if gain > 0 else "draining",
        }

    def _flow_truth(self, flow: float, total: float) -> Values:
        return {
            "flow": flow,
            "velocity": flow / 3600 / _PIPE_AREA,
            "total": 2_410_000 + total,
            "temperature": self._water_temperature,
            "empty_pipe": flow < 1,
            "state": "measuring" if flow >= 1 else "idle",
        }

    def _measure(self, metrics: dict[str, Metric], truth: Values) -> Values:
        """Add the sensors' noise and round as they transmit; a machine at rest reads a clean zero,
        and noise never turns a sign (no wind blows at -0.3 m/s).
        """
        values: Values = {}
        for name, value in truth.items():
            metric = metrics.get(name)
            if metric is None or isinstance(value, (bool, str)):
                values[name] = value
                continue
            # Drawn even where it is not used: what stands still must not shift the other sensors.
            read = value + metric.noise * self._sensors.gauss()
            values[name] = round(read, metric.digits) if read * value > 0 else 0.0
        return values


def _check_fault(fault: Fault) -> None:
    """Raise ValueError if a fault could never be seen."""
    kind = DEVICES.get(fault.device)
    if kind is None:
        raise ValueError(f"no device is called {fault.device!r}; there are {', '.join(DEVICES)}")
    if fault.kind is FaultKind.BEARING_WEAR and kind != "pump":
        raise ValueError(f"{fault.device} has no bearing; bearing_wear strikes pumps")
    if fault.metric is not None and fault.metric not in METRICS[kind]:
        known = ", ".join(METRICS[kind])
        raise ValueError(f"{fault.device} does not measure {fault.metric!r}; it measures {known}")
