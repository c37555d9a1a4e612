"""Runs a plant: enrols it, lets time pass in its stations, and hands the readings to the devices."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from clients.simulator.devices.device import CredentialRefused, Device, OnAcknowledged, Stats
from clients.simulator.faults import Fault
from clients.simulator.plant import DEVICES
from clients.simulator.protocols import PROTOCOLS, Doors, make_device
from clients.simulator.site import Site, shared_out
from clients.simulator.station import Credential, Platform, enrol, ensure_demo_rule

log = logging.getLogger(__name__)

HTTP_TYPES = frozenset({"weather-station", "power-meter", "dosing-unit"})
"""Devices of these types speak HTTP, the others MQTT, unless protocols are shared out otherwise."""
DEMO_PUMP = "pump-2"
"""The pump that the demo rule watches."""
KNOCK_AGAIN = 15.0
"""Seconds after which a device that was turned away tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run the simulator."""

    doors: Doors
    email: str
    password: str
    state: Path
    """The file that keeps the devices' credentials."""
    devices: int = len(DEVICES)
    """How many; a station has fourteen."""
    protocols: Mapping[str, float] = field(default_factory=dict)
    """Protocol -> its share of the devices; empty: by type, see HTTP_TYPES."""
    rate: float = 1.0
    """Readings a second from each device."""
    speed: float = 1.0
    """Plant seconds in a second. Time stamps stay true: they say when a reading was made."""
    faults: tuple[Fault, ...] = ()
    random_faults: float = 0.0
    """Faults an hour of the plant's own time in each station, on the average."""
    seed: int = 1
    patience: float = 120.0
    """Seconds to wait for a platform that is still starting."""
    farewell: float = 5.0
    """Seconds given to what is unacknowledged when the simulator is told to stop."""

    def __repr__(self) -> str:
        return f"Settings({self.doors})"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the simulation stands; told once a second."""

    groups: Mapping[str, "Group"]
    """Protocol -> how its devices do."""
    stats: Stats
    points_per_s: float
    """Values acknowledged in the last second."""
    faults: tuple[str, ...]
    """What is broken now."""

    @property
    def devices(self) -> int:
        """How many there are."""
        return sum(group.devices for group in self.groups.values())

    @property
    def connected(self) -> int:
        """How many the platform has let in."""
        return sum(group.connected for group in self.groups.values())

    @property
    def turned_away(self) -> int:
        """Devices whose credential the platform refuses."""
        return sum(group.turned_away for group in self.groups.values())

    @property
    def backlog(self) -> int:
        """Readings not yet acknowledged."""
        return sum(group.backlog for group in self.groups.values())


@dataclass(frozen=True, slots=True)
class Group:
    """How the devices of one protocol do."""

    devices: int
    connected: int
    turned_away: int
    backlog: int
    stats: Stats


OnProgress = Callable[[Progress], None]
OnEnrolled = Callable[[int, int], None]
"""Told about once a second how many devices are registered, of how many."""


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_enrolled: OnEnrolled | None = None,
    on_progress: OnProgress | None = None,
    on_acknowledged: OnAcknowledged | None = None,
) -> Stats:
    """Simulate the plant until `stop` is set and return what became of its readings.

    Its devices enrol themselves where they are not registered yet. Raises PlatformRefused when they
    cannot, ValueError when a fault names what does not exist, or a share a protocol that is not spoken.
    """
    started = datetime.now(UTC)
    site = Site(settings.devices, settings.seed, started, settings.faults, settings.random_faults)
    protocols = _protocols(site, settings)
    halt = asyncio.create_task(stop.wait())
    enrolment = asyncio.create_task(_enrol(settings, site, on_enrolled))
    fleet: dict[str, Device] = {}
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait((halt, enrolment), return_when=asyncio.FIRST_COMPLETED)
        if not enrolment.done():
            return Stats()
        fleet = {
            name: make_device(
                protocols[name],
                settings.doors,
                credential,
                on_acknowledged=on_acknowledged,
                on_command=site.commands_of(name),
            )
            for name, credential in enrolment.result().items()
        }
        clock = asyncio.create_task(_let_time_pass(site, fleet, settings))
        tasks = [clock, *(asyncio.create_task(_keep_talking(d)) for d in fleet.values())]
        if on_progress is not None:
            tasks.append(asyncio.create_task(_tell(on_progress, site, fleet, protocols)))
        # The tasks go on for ever: one that is done has failed.
        done, _ = await asyncio.wait((halt, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        clock.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.farewell):
                await asyncio.gather(*(device.drain() for device in fleet.values()))
    finally:
        await _end((halt, enrolment, *tasks), within_s=settings.farewell)
    return _sum(fleet.values())


async def _end(tasks: Sequence[asyncio.Task[Any]], *, within_s: float) -> None:
    """Cancel the tasks; a device whose goodbye is not heard within the time leaves without."""
    for task in tasks:
        task.cancel()
    # Not gathered: that would wait for ever for a device whose library swallows its cancellation.
    done, _ = await asyncio.wait(tasks, timeout=within_s)
    for task in done:
        if not task.cancelled():
            task.exception()  # looked at: whatever else failed is of no interest at the end


def _protocols(site: Site, settings: Settings) -> dict[str, str]:
    unknown = settings.protocols.keys() - set(PROTOCOLS)
    if unknown:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"{', '.join(sorted(unknown))} is not spoken here; there are {known}")
    if settings.protocols:
        return shared_out(list(site.types), settings.protocols)
    return {name: "http" if kind in HTTP_TYPES else "mqtt" for name, kind in site.types.items()}


async def _enrol(
    settings: Settings, site: Site, on_enrolled: OnEnrolled | None
) -> Mapping[str, Credential]:
    async with Platform(
        settings.doors.url, settings.email, settings.password, patience=settings.patience
    ) as platform:
        enrolled = await enrol(platform, site.types, settings.state, on_progress=on_enrolled)
        if DEMO_PUMP in enrolled:
            await ensure_demo_rule(platform, DEMO_PUMP, enrolled[DEMO_PUMP].id)
        return enrolled


async def _keep_talking(device: Device) -> None:
    """Let a device run; one that was turned away knocks again, rarely, in case it was let in again.

    It does not get itself a new token: whoever revoked the old one shall see that it stays outside.
    """
    while True:
        try:
            await device.run()
        except CredentialRefused as refusal:
            log.warning("device %s was turned away: %s", device.id, refusal)
            await asyncio.sleep(KNOCK_AGAIN)


async def _let_time_pass(site: Site, fleet: Mapping[str, Device], settings: Settings) -> None:
    """Step the stations one after the other, evenly over the time between two readings."""
    loop = asyncio.get_running_loop()
    stations = len(site.stations)
    period = 1 / settings.rate
    due, turn = loop.time(), 0
    while True:
        readings = site.step(turn % stations, period * settings.speed)
        turn += 1
        ts = time.time_ns() // 1_000_000
        for name, values in readings.items():
            fleet[name].offer(ts, values)
        # What was missed (the machine slept) stays missed: readings made in a hurry would all
        # claim to be from now.
        due = max(due + period / stations, loop.time() - period)
        await asyncio.sleep(due - loop.time())


async def _tell(
    on_progress: OnProgress,
    site: Site,
    fleet: Mapping[str, Device],
    protocols: Mapping[str, str],
) -> None:
    loop = asyncio.get_running_loop()
    since, points = loop.time(), 0
    speakers: dict[str, list[Device]] = {}
    for name, device in fleet.items():
        speakers.setdefault(protocols[name], []).append(device)
    while True:
        stats, now = _sum(fleet.values()), loop.time()
        on_progress(
            Progress(
                groups={name: _group(devices) for name, devices in speakers.items()},
                stats=stats,
                points_per_s=(stats.points - points) / max(now - since, 1e-3),
                faults=tuple(site.active_faults()),
            )
        )
        since, points = now, stats.points
        await asyncio.sleep(1)


def _group(devices: Sequence[Device]) -> Group:
    return Group(
        devices=len(devices),
        connected=sum(device.is_connected for device in devices),
        turned_away=sum(device.is_refused for device in devices),
        backlog=sum(device.backlog for device in devices),
        stats=_sum(devices),
    )


def _sum(devices: Iterable[Device]) -> Stats:
    return reduce(add, (device.stats for device in devices), Stats())
