"""Things that go wrong on purpose: scheduled, visible in the readings, and gone when their time is up."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from random import Random

from clients.simulator.metrics import Metric, Values


class FaultKind(StrEnum):
    """How a device misbehaves."""

    DRIFT = "drift"
    """The reading leaves the truth slowly: one span away at the end."""
    SPIKE = "spike"
    """Now and then one reading is far off."""
    STUCK = "stuck"
    """The reading stays at its last value."""
    STEP = "step"
    """The reading is half a span too high."""
    DROPOUT = "dropout"
    """The metric is missing; without a metric, the whole device is silent."""
    BEARING_WEAR = "bearing_wear"
    """A pump's bearing itself wears: it runs hot and shakes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One planned fault; times are seconds of the plant's own time since its start."""

    kind: FaultKind
    device: str
    metric: str | None = None
    """Absent: the main metric of the device."""
    at: float = 0.0
    duration: float = 180.0

    def is_active(self, elapsed: float) -> bool:
        """Whether the fault acts at this moment."""
        return self.at <= elapsed < self.at + self.duration

    def at_device(self, device: str) -> "Fault":
        """Return the same fault of another device."""
        return replace(self, device=device)

    def __str__(self) -> str:
        """As it is written on the command line, without its times."""
        where = f"{self.device}.{self.metric}" if self.metric else self.device
        return f"{self.kind}:{where}"


_FAULT = re.compile(
    r"(?P<kind>\w+):(?P<device>[\w/-]+)(\.(?P<metric>\w+))?"
    r"(@(?P<at>\d+(\.\d+)?[smh]?))?(\+(?P<duration>\d+(\.\d+)?[smh]?|forever))?"
)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_fault(text: str) -> Fault:
    """Read `kind:device[.metric][@start][+duration]`, e.g. `bearing_wear:pump-2@30s+3m`.

    Times are seconds unless they end in s, m or h; the duration may be `forever`.
    Raises ValueError with a sentence for the person who typed it.
    """
    match = _FAULT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not KIND:DEVICE[.METRIC][@START][+DURATION]")
    kinds = ", ".join(FaultKind)
    if match["kind"] not in set(FaultKind):
        raise ValueError(f"no fault is called {match['kind']!r}; there are {kinds}")
    kind = FaultKind(match["kind"])
    if kind is FaultKind.BEARING_WEAR and match["metric"]:
        raise ValueError("bearing_wear strikes a whole pump, not one metric")
    return Fault(
        kind=kind,
        device=match["device"],
        metric=match["metric"],
        at=_seconds(match["at"] or "0"),
        duration=_seconds(match["duration"] or "180s"),
    )


def _seconds(text: str) -> float:
    if text == "forever":
        return inf
    unit = text[-1] if text[-1] in _SECONDS else "s"
    return float(text.removesuffix(unit)) * _SECONDS[unit]


class FaultPlan:
    """Applies the planned faults of a station to the readings of its devices.

    It draws from a random source of its own, so that a fault on one sensor leaves
    every other reading exactly as it would have been.
    """

    SPIKES_PER_SECOND = 0.2

    def __init__(self, faults: Sequence[Fault], by_chance: Iterator[Fault], rng: Random) -> None:
        self._planned = tuple(faults)
        self._by_chance = by_chance
        self._next = next(by_chance, None)
        self._struck: list[Fault] = []
        """Those that came by chance and are not over."""
        self._rng = rng
        self._held: dict[Fault, float | bool | str] = {}

    def let_happen(self, elapsed: float) -> None:
        """Let what chance brings up to this moment begin, and what is over be forgotten."""
        for over in [fault for fault in self._struck if elapsed >= fault.at + fault.duration]:
            self._struck.remove(over)
            self._held.pop(over, None)
        while self._next is not None and self._next.at <= elapsed:
            self._struck.append(self._next)
            self._next = next(self._by_chance, None)

    def active(self, elapsed: float) -> list[Fault]:
        """Return the faults that act at this moment."""
        return [f for f in (*self._planned, *self._struck) if f.is_active(elapsed)]

    def damage(self, device: str, elapsed: float) -> float:
        """Return how worn the device's bearing shall become: 1 under bearing_wear, else 0."""
        worn = any(
            fault.kind is FaultKind.BEARING_WEAR and fault.device == device
            for fault in self.active(elapsed)
        )
        return 1.0 if worn else 0.0

    def distort(
        self, device: str, metrics: Mapping[str, Metric], values: Values, dt: float, elapsed: float
    ) -> Values | None:
        """Return what the faulty sensors of this device report instead; None when it is silent."""
        for fault in (*self._planned, *self._struck):
            if fault.device != device:
                continue
            if not fault.is_active(elapsed):
                self._held.pop(fault, None)
                continue
            if fault.kind is FaultKind.DROPOUT and fault.metric is None:
                return None
            name = fault.metric or next(iter(metrics))
            if fault.kind is FaultKind.DROPOUT:
                values.pop(name, None)
            elif fault.kind is FaultKind.STUCK and name in values:
                values[name] = self._held.setdefault(fault, values[name])
            else:
                self._offset(fault, name, metrics.get(name), values, dt, elapsed)
        return values

    def _offset(
        self,
        fault: Fault,
        name: str,
        metric: Metric | None,
        values: Values,
        dt: float,
        elapsed: float,
    ) -> None:
        value = values.get(name)
        if metric is None or not isinstance(value, float):
            return
        match fault.kind:
            case FaultKind.DRIFT:
                # A drift without an end grows by a span in ten minutes.
                over = fault.duration if fault.duration < inf else 600.0
                offset = metric.span * (elapsed - fault.at) / over
            case FaultKind.STEP:
                offset = metric.span / 2
            case FaultKind.SPIKE:
                hit = self._rng.random() < self.SPIKES_PER_SECOND * dt
                sign = 1 if self._rng.random() < 0.5 else -1
                offset = sign * metric.span * 2 if hit else 0.0
            case _:
                return
        values[name] = round(value + offset, metric.digits)
