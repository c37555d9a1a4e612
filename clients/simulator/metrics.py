"""What each kind of device measures, in which unit, and how well."""

from dataclasses import dataclass
from types import MappingProxyType

Value = float | bool | str
Values = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity."""

    unit: str
    """As the platform is told; empty for a ratio or a count."""
    span: float
    """The range in which it normally moves: faults are sized by it."""
    noise: float
    """Standard deviation of the sensor, in the metric's own unit."""
    digits: int
    """Decimals that the device transmits."""


def _exact(unit: str, span: float, digits: int) -> Metric:
    """A counter or a set value, which has no noise."""
    return Metric(unit, span, 0.0, digits)


# The first metric of a type is the one a fault hits when none is named. Metrics that are missing
# here (running, valve_open, mode, state …) are bools and strings: they have neither unit nor noise.
METRICS = MappingProxyType(
    {
        "pump": {
            "bearing_temperature": Metric("°C", 40, 0.15, 1),
            "vibration": Metric("mm/s", 3, 0.05, 2),
            "flow": Metric("m³/h", 200, 0.8, 1),
            "suction_pressure": Metric("bar", 0.4, 0.003, 3),
            "discharge_pressure": Metric("bar", 3, 0.01, 2),
            "speed": Metric("rpm", 1480, 1.0, 0),
            "power": Metric("kW", 20, 0.05, 2),
            "efficiency": Metric("%", 60, 0.3, 1),
        },
        "motor": {
            "current": Metric("A", 40, 0.2, 1),
            "voltage": Metric("V", 20, 0.3, 1),
            "winding_temperature": Metric("°C", 50, 0.15, 1),
            "speed": Metric("rpm", 1480, 1.0, 0),
            "power": Metric("kW", 25, 0.05, 2),
            "load": Metric("%", 80, 0.3, 1),
        },
        "tank": {
            "level": Metric("%", 60, 0.05, 2),
            "volume": Metric("m³", 700, 0.6, 1),
            "inflow": Metric("m³/h", 400, 1.0, 1),
            "outflow": Metric("m³/h", 400, 1.0, 1),
            "temperature": Metric("°C", 10, 0.05, 2),
        },
        "compressor": {
            "pressure": Metric("bar", 1, 0.01, 2),
            "oil_temperature": Metric("°C", 40, 0.15, 1),
            "current": Metric("A", 20, 0.1, 1),
            "duty_cycle": Metric("%", 60, 0.0, 1),
            "power": Metric("kW", 10, 0.03, 2),
        },
        "flow-meter": {
            "flow": Metric("m³/h", 400, 0.8, 1),
            "velocity": Metric("m/s", 2, 0.004, 3),
            "total": _exact("m³", 1000, 2),
            "temperature": Metric("°C", 10, 0.05, 2),
        },
        "power-meter": {
            "power": Metric("kW", 60, 0.05, 2),
            "energy": _exact("kWh", 1000, 3),
            "voltage": Metric("V", 20, 0.2, 1),
            "current": Metric("A", 100, 0.2, 1),
            "power_factor": Metric("", 0.3, 0.002, 3),
            "frequency": Metric("Hz", 0.2, 0.004, 3),
        },
        "weather-station": {
            "temperature": Metric("°C", 20, 0.05, 1),
            "humidity": Metric("%", 50, 0.3, 1),
            "pressure": Metric("hPa", 30, 0.05, 1),
            "wind_speed": Metric("m/s", 8, 0.1, 1),
            "rain": Metric("mm/h", 5, 0.0, 1),
        },
        "dosing-unit": {
            "chlorine": Metric("mg/L", 0.6, 0.005, 3),
            "ph": Metric("", 1, 0.005, 2),
            "turbidity": Metric("NTU", 0.5, 0.003, 3),
            "dose_rate": Metric("L/h", 4, 0.01, 2),
            "stock": Metric("L", 800, 0.3, 1),
        },
    }
)
"""Device type -> metric name -> Metric."""
