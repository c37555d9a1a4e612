"""Believable models of what stands in a pumping station.

Pure: the step `dt` (seconds, any size >= 0) and a seeded `random.Random` are arguments, no clock is read.
Thermal and noise models use the exact solution of their equation, so that a step of a minute is as
stable as a step of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import cos, exp, pi, sqrt
from random import Random

GRAVITY = 9.81
"""m/s²."""
BAR_PER_METRE = 0.0981
"""Pressure of one metre of water."""


def relax(value: float, target: float, dt: float, tau: float) -> float:
    """Return where a first-order lag with time constant `tau` (s) stands `dt` seconds later."""
    return target + (value - target) * exp(-dt / tau)


def clamp(value: float, low: float, high: float) -> float:
    """Return the value, or the bound that it passed."""
    return max(low, min(high, value))


def hour_of_day(now: datetime) -> float:
    """Return the hour with its fraction, 0 <= hour < 24, in the time zone of `now`."""
    return now.hour + now.minute / 60 + now.second / 3600


@dataclass(slots=True)
class Wander:
    """Noise with a memory (an Ornstein-Uhlenbeck process): mean 0, spread `sigma`, memory `tau` s."""

    tau: float
    sigma: float
    value: float = 0.0

    def step(self, dt: float, rng: Random) -> float:
        """Advance by `dt` and return the new value."""
        keep = exp(-dt / self.tau)
        self.value = self.value * keep + self.sigma * sqrt(1 - keep * keep) * rng.gauss()
        return self.value


@dataclass(frozen=True, slots=True)
class PumpCurve:
    """A centrifugal pump: head and power over flow, scaled with speed by the affinity laws.

    Flows are m³/h, heads m of water, powers kW at the shaft, speeds a ratio to the rated speed.
    """

    rated_rpm: float = 1480.0
    shutoff_head: float = 42.0
    droop: float = 2.48e-4
    best_flow: float = 220.0
    rated_power: float = 24.0

    def head(self, flow: float, speed: float) -> float:
        """Return the head that the pump makes at this flow."""
        return self.shutoff_head * speed * speed - self.droop * flow * flow

    def flow(self, head: float, speed: float) -> float:
        """Return the flow against this head; 0 where the head is more than the pump can make."""
        surplus = self.shutoff_head * speed * speed - head
        return sqrt(surplus / self.droop) if surplus > 0 else 0.0

    def load(self, flow: float, speed: float) -> float:
        """Return the flow as a ratio to the best flow at this speed."""
        return flow / (self.best_flow * speed) if speed > 0 else 0.0

    def power(self, flow: float, speed: float) -> float:
        """Return the shaft power; a pump against a closed valve still churns."""
        return self.rated_power * speed**3 * (0.45 + 0.55 * self.load(flow, speed))

    def efficiency(self, flow: float, speed: float) -> float:
        """Return the hydraulic power as a ratio to the shaft power."""
        power = self.power(flow, speed)
        if power <= 0:
            return 0.0
        return max(0.0, hydraulic_power(flow, self.head(flow, speed)) / power)


def hydraulic_power(flow: float, head: float) -> float:
    """Return the power in kW that lifts `flow` m³/h of water by `head` m."""
    return GRAVITY * flow * head / 3600


def parallel_flows(
    curve: PumpCurve, speeds: Sequence[float], static_lift: float, resistance: float
) -> list[float]:
    """Return the flow of each pump where they feed one pipe of `static_lift` + `resistance` x flow².

    Found by bisection on the head in the common header: what the pumps give falls with that head,
    what the pipe takes rises with it.
    """
    low = static_lift
    high = max((curve.shutoff_head * speed * speed for speed in speeds), default=0.0)
    if high <= low:
        return [0.0 for _ in speeds]
    for _ in range(36):
        head = (low + high) / 2
        given = sum(curve.flow(head, speed) for speed in speeds)
        if given * given * resistance > head - static_lift:
            low = head
        else:
            high = head
    # At `high` the pumps give no more than the pipe takes: no flow is invented by rounding.
    return [curve.flow(high, speed) for speed in speeds]


@dataclass(slots=True)
class Bearing:
    """A pump bearing: warms with speed and load, and with wear runs hot and shakes.

    Its time constant is half a minute, where an iron housing takes a quarter of an hour: a fault
    shall be seen by whoever is watching.
    """

    temperature: float = 45.0
    """°C."""
    wear: float = 0.0
    """0 new, 1 about to seize."""
    vibration: float = 0.0
    """mm/s RMS, judged as in ISO 10816: below 2.8 good, above 7.1 damage."""

    TAU = 30.0
    WEAR_TAU = 6.0

    def step(self, dt: float, speed: float, load: float, ambient: float, damage: float) -> None:
        """Advance by `dt` at this speed and load (ratios); `damage` (0..1) is where wear is heading."""
        self.wear = relax(self.wear, damage, dt, self.WEAR_TAU)
        rise = 0.0
        if speed > 0:
            rise = 36 * speed**1.5 * (0.6 + 0.4 * min(load, 1.5))
            rise += self.wear * (64 + 16 * speed)
        self.temperature = relax(self.temperature, ambient + rise, dt, self.TAU)
        # Away from the best flow the water itself shakes the pump.
        hydraulic = 0.5 + 0.8 * abs(1 - load)
        self.vibration = speed * speed * (0.9 + hydraulic) + 7.5 * self.wear * speed


@dataclass(slots=True)
class Motor:
    """A three-phase induction motor behind a variable speed drive."""

    rated_power: float = 30.0
    """kW at the shaft."""
    winding_temperature: float = 25.0
    """°C."""
    speed: float = 0.0
    """Ratio to the rated speed, behind the drive's ramp."""
    power: float = 0.0
    """kW taken from the mains."""
    current: float = 0.0
    """A per phase."""
    load: float = 0.0
    """Shaft power as a ratio to the rated power."""

    RAMP = 4.0
    TAU = 600.0

    def ramp(self, dt: float, wanted: float) -> float:
        """Advance the drive's ramp towards the wanted speed ratio and return the speed."""
        self.speed = relax(self.speed, wanted, dt, self.RAMP)
        if self.speed < 0.02:
            self.speed = 0.0
        return self.speed

    def step(self, dt: float, shaft_power: float, voltage: float, ambient: float) -> None:
        """Advance currents and temperature by `dt` at this shaft power (kW) and voltage (V)."""
        self.load = shaft_power / self.rated_power
        if self.speed > 0:
            efficiency = clamp(0.70 + 0.30 * self.load, 0.70, 0.93)
            power_factor = clamp(0.55 + 0.40 * self.load, 0.55, 0.88)
            self.power = shaft_power / efficiency + 0.2
            self.current = self.power * 1000 / (sqrt(3) * voltage * power_factor)
        else:
            self.power = 0.0
            self.current = 0.0
        self.winding_temperature = relax(
            self.winding_temperature, ambient + 62 * self.load**2 + 3 * self.speed, dt, self.TAU
        )


@dataclass(slots=True)
class Tank:
    """An upright tank of water. Volumes in m³, flows in m³/h, heights in m."""

    area: float
    height: float
    volume: float
    overflowed: float = 0.0
    """m³ lost over the brim since the start."""

    @property
    def capacity(self) -> float:
        """m³ when full."""
        return self.area * self.height

    @property
    def depth(self) -> float:
        """Metres of water above the floor."""
        return self.volume / self.area

    @property
    def level(self) -> float:
        """Percent of the height."""
        return 100 * self.volume / self.capacity

    def deliverable(self, dt: float, wanted: float) -> float:
        """Return the outflow that the tank can sustain for `dt` without running dry."""
        return min(wanted, self.volume * 3600 / dt) if dt > 0 else wanted

    def exchange(self, dt: float, inflow: float, outflow: float) -> None:
        """Advance by `dt`; what does not fit runs over the brim and is counted."""
        volume = max(0.0, self.volume + (inflow - outflow) * dt / 3600)
        spilt = max(0.0, volume - self.capacity)
        self.overflowed += spilt
        self.volume = volume - spilt


def town_demand(now: datetime) -> float:
    """Return the water that the town draws (m³/h): little at night, peaks at breakfast and supper."""
    hour = hour_of_day(now)
    weekend = now.weekday() >= 5
    breakfast = 9.0 if weekend else 7.5
    demand = 300 - 90 * cos((hour - 3) * pi / 12)
    demand += 130 * exp(-(((hour - breakfast) / 1.4) ** 2))
    demand += 110 * exp(-(((hour - 19.5) / 1.8) ** 2))
    return demand


@dataclass(slots=True)
class Compressor:
    """An instrument air compressor that loads at 6.5 bar and unloads at 7.5 bar."""

    pressure: float = 7.0
    """bar."""
    loaded: bool = False
    duty: float = 0.25
    """Share of the time it was loaded, over about ten minutes (0..1)."""
    oil_temperature: float = 45.0
    """°C."""
    consumption: Wander = field(default_factory=lambda: Wander(tau=300, sigma=0.05))

    LOW = 6.5
    HIGH = 7.5
    FILL = 1.0
    """bar a minute while loaded."""
    DRAW = 0.28
    """bar a minute that the instruments use."""

    def step(self, dt: float, ambient: float, rng: Random) -> None:
        """Advance by `dt`, through as many turns of its band as fit into it."""
        draw = clamp(self.DRAW + self.consumption.step(dt, rng), 0.1, 0.6) / 60
        left, loaded_for = dt, 0.0
        while left > 0:
            rate = self.FILL / 60 - draw if self.loaded else -draw
            edge = self.HIGH if self.loaded else self.LOW
            span = min(left, max(0.0, (edge - self.pressure) / rate))
            self.pressure += rate * span
            loaded_for += span if self.loaded else 0.0
            left -= span
            if left > 0:
                self.pressure = edge
                self.loaded = not self.loaded
        if dt > 0:
            self.duty = relax(self.duty, loaded_for / dt, dt, 600)
        self.oil_temperature = relax(self.oil_temperature, ambient + 28 + 50 * self.duty, dt, 300)


@dataclass(slots=True)
class Weather:
    """The air around the station: seasons of the northern temperate zone, days, clouds and rain."""

    temperature: float = 12.0
    """°C."""
    humidity: float = 60.0
    """%."""
    pressure: float = 1013.0
    """hPa."""
    wind: float = 3.0
    """m/s."""
    rain: float = 0.0
    """mm/h."""
    mood: Wander = field(default_factory=lambda: Wander(tau=6 * 3600, sigma=2.5))
    front: Wander = field(default_factory=lambda: Wander(tau=18 * 3600, sigma=8))
    gust: Wander = field(default_factory=lambda: Wander(tau=120, sigma=1.2))

    @property
    def sky(self) -> str:
        """`clear`, `cloudy` or `rain`."""
        if self.rain > 0:
            return "rain"
        return "clear" if self.pressure > 1013 else "cloudy"

    def step(self, dt: float, now: datetime, rng: Random) -> None:
        """Advance by `dt` to the time `now`."""
        season = 11 - 9 * cos((now.timetuple().tm_yday - 20) * 2 * pi / 365)
        day = -5 * cos((hour_of_day(now) - 3) * pi / 12)
        self.temperature = season + day + self.mood.step(dt, rng)
        self.pressure = 1013 + self.front.step(dt, rng)
        self.rain = max(0.0, (1003 - self.pressure) * 0.6)
        self.humidity = clamp(68 - 2.2 * day - (self.pressure - 1013) * 1.1, 20, 100)
        self.wind = max(0.0, 3 - (self.pressure - 1013) * 0.12 + self.gust.step(dt, rng))


@dataclass(slots=True)
class Dosing:
    """Chlorine dosed into the rising main in proportion to its flow, and what the sensors find."""

    chlorine: float = 0.6
    """mg/L free chlorine in the clear water."""
    ph: float = 7.4
    turbidity: float = 0.25
    """NTU."""
    rate: float = 0.0
    """L/h of hypochlorite solution."""
    stock: float = 800.0
    """L of solution in the day tank, refilled when almost empty."""
    acidity: Wander = field(default_factory=lambda: Wander(tau=3600, sigma=0.06))
    cloudiness: Wander = field(default_factory=lambda: Wander(tau=1800, sigma=0.05))

    SETPOINT = 0.6
    STOCK = 1000.0
    STRENGTH = 120.0
    """g of chlorine in a litre of solution."""

    def step(self, dt: float, flow: float, rng: Random) -> None:
        """Advance by `dt` with this flow (m³/h) in the main."""
        # A trim on top of the proportion: what the sensor lacks is dosed in addition.
        trim = clamp(1 + 1.5 * (self.SETPOINT - self.chlorine), 0.3, 2.0)
        self.rate = flow * (self.SETPOINT + 0.3) * trim / self.STRENGTH
        dosed = self.rate * self.STRENGTH / flow if flow > 1 else 0.0
        self.chlorine = max(0.0, relax(self.chlorine, max(0.0, dosed - 0.3), dt, 1800))
        self.stock -= self.rate * dt / 3600
        if self.stock < 0.1 * self.STOCK:
            self.stock = self.STOCK
        # Hypochlorite is a base: more of it moves the pH a little.
        self.ph = 7.4 + 0.1 * (self.chlorine - self.SETPOINT) + self.acidity.step(dt, rng)
        self.turbidity = max(0.02, 0.25 + self.cloudiness.step(dt, rng))
