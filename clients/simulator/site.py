"""Several stations side by side, which make one plant of any size."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from math import ceil
from random import Random

from clients.simulator.commands import OnCommand, Params
from clients.simulator.faults import Fault, FaultKind
from clients.simulator.metrics import METRICS, Values
from clients.simulator.plant import DEVICES, Plant

Readings = dict[str, Values]
"""Device name -> metric -> value."""


def name_of(station: int, device: str) -> str:
    """Return what a station's device is called: in the first by its own name alone."""
    return device if station == 0 else f"station-{station + 1}/{device}"


def device_types(devices: int) -> dict[str, str]:
    """Return name -> type of so many devices, station by station."""
    names = (
        (name_of(station, device), kind)
        for station in range(ceil(devices / len(DEVICES)))
        for device, kind in DEVICES.items()
    )
    return {name: kind for (name, kind), _ in zip(names, range(devices), strict=False)}


class Site:
    """So many devices, of as many stations as that takes, each with its own weather and water.

    The same seed, start and steps give the same readings. `faults` name devices as `device_types`
    does and count from `start`; beside them each station has `random_faults` an hour, on the
    average. Raises ValueError when a fault names a device or metric that is not there.
    """

    def __init__(
        self,
        devices: int,
        seed: int,
        start: datetime,
        faults: Sequence[Fault] = (),
        random_faults: float = 0.0,
    ) -> None:
        self.types = device_types(devices)
        planned: dict[int, list[Fault]] = {}
        for fault in faults:
            if fault.device not in self.types:
                known = ", ".join(list(self.types)[: len(DEVICES)])
                raise ValueError(f"no device is called {fault.device!r}; there are {known} …")
            station, local = _local(fault.device)
            planned.setdefault(station, []).append(fault.at_device(local))
        self._start = start
        self.stations = [
            Plant(
                seed + 1000 * station,
                start,
                planned.get(station, ()),
                _by_chance(
                    random_faults,
                    [name for name in DEVICES if name_of(station, name) in self.types],
                    Random(f"{seed} {station}"),
                ),
            )
            for station in range(ceil(devices / len(DEVICES)))
        ]

    def step(self, station: int, dt: float) -> Readings:
        """Advance one station by `dt` seconds and return what its devices read."""
        plant = self.stations[station]
        readings = plant.step(dt, self._start + timedelta(seconds=plant.elapsed + dt))
        named = {name_of(station, device): values for device, values in readings.items()}
        return {name: values for name, values in named.items() if name in self.types}

    def active_faults(self) -> list[str]:
        """Return the faults that act now, as they are written on the command line."""
        return [
            str(fault.at_device(name_of(station, fault.device)))
            for station, plant in enumerate(self.stations)
            for fault in plant.active_faults()
        ]

    def commands_of(self, name: str) -> OnCommand:
        """Return what does the commands of a device, as `Plant.command`."""
        station, device = _local(name)
        plant = self.stations[station]

        def obey(command: str, params: Params) -> object:
            return plant.command(device, command, params)

        return obey


def _local(name: str) -> tuple[int, str]:
    station, _, device = name.rpartition("/")
    return (int(station.removeprefix("station-")) - 1 if station else 0), device


def _by_chance(per_hour: float, devices: Collection[str], rng: Random) -> Iterator[Fault]:
    """Yield faults of these devices at random moments, without end, of half a minute to ten."""
    pumps = [device for device in devices if DEVICES[device] == "pump"]
    kinds = [kind for kind in FaultKind if pumps or kind is not FaultKind.BEARING_WEAR]
    at = 0.0
    while per_hour > 0:
        at += rng.expovariate(per_hour / 3600)
        kind = rng.choice(kinds)
        device = rng.choice(pumps if kind is FaultKind.BEARING_WEAR else list(devices))
        metric = (
            None
            if kind in (FaultKind.BEARING_WEAR, FaultKind.DROPOUT)
            else rng.choice(list(METRICS[DEVICES[device]]))
        )
        yield Fault(kind, device, metric, at, rng.uniform(30.0, 600.0))


def shared_out(names: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Give each name one of the shares' keys, so that at every moment the counts are in proportion."""
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError("shares are not negative, and one at least is more than 0")
    given = dict.fromkeys(shares, 0)
    chosen: dict[str, str] = {}
    for count, name in enumerate(names, start=1):
        # Whoever is furthest behind its share has the next.
        chosen[name] = max(shares, key=lambda key: shares[key] / total * count - given[key])
        given[chosen[name]] += 1
    return chosen
