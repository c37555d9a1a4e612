"""Runs the station: enrols it, lets time pass in the plant, and hands the readings to the devices."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import add
from pathlib import Path
from random import Random

from clients.simulator.devices import (
    CredentialRefused,
    Device,
    HttpDevice,
    MqttDevice,
    OnAcknowledged,
    Stats,
)
from clients.simulator.faults import Fault
from clients.simulator.plant import DEVICES, Plant
from clients.simulator.station import Credential, Platform, enrol, ensure_demo_rule

log = logging.getLogger(__name__)

HTTP_DEVICES = frozenset({"weather-station", "power-meter", "dosing-unit"})
"""These speak HTTP, the others MQTT."""
DEMO_PUMP = "pump-2"
"""The pump that the demo rule watches."""
KNOCK_AGAIN = 15.0
"""Seconds after which a device that was turned away tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run the simulator."""

    api: str
    """URL of the platform, without `/api/v1`."""
    mqtt_host: str
    mqtt_port: int
    email: str
    password: str
    state: Path
    """The file that keeps the devices' credentials."""
    rate: float = 1.0
    """Readings a second from each device."""
    speed: float = 1.0
    """Plant seconds in a second. Time stamps stay true: they say when a reading was made."""
    faults: tuple[Fault, ...] = ()
    seed: int = 1
    patience: float = 120.0
    """Seconds to wait for a platform that is still starting."""
    farewell: float = 5.0
    """Seconds given to what is unacknowledged when the simulator is told to stop."""

    def __repr__(self) -> str:
        return f"Settings(api={self.api!r}, mqtt={self.mqtt_host}:{self.mqtt_port})"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the simulation stands; told once a second."""

    devices: int
    connected: int
    turned_away: int
    """Devices whose credential the platform refuses."""
    backlog: int
    """Readings not yet acknowledged."""
    stats: Stats
    points_per_s: float
    """Values acknowledged in the last second."""
    faults: tuple[str, ...]
    """What is broken now."""


OnProgress = Callable[[Progress], None]


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    on_progress: OnProgress | None = None,
    on_acknowledged: OnAcknowledged | None = None,
) -> Stats:
    """Simulate the station until `stop` is set and return what became of its readings.

    Raises PlatformRefused when the station cannot be enrolled, ValueError when a fault names what
    does not exist.
    """
    started = datetime.now(UTC)
    plant = Plant(settings.seed, started, settings.faults)
    halt = asyncio.create_task(stop.wait())
    enrolment = asyncio.create_task(_enrol(settings))
    fleet: dict[str, Device] = {}
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.wait((halt, enrolment), return_when=asyncio.FIRST_COMPLETED)
        if not enrolment.done():
            return Stats()
        fleet = {
            name: _device(name, credential, settings, on_acknowledged)
            for name, credential in enrolment.result().items()
        }
        clock = asyncio.create_task(_let_time_pass(plant, fleet, settings, started))
        tasks = [clock, *(asyncio.create_task(_keep_talking(d)) for d in fleet.values())]
        if on_progress is not None:
            tasks.append(asyncio.create_task(_tell(on_progress, plant, fleet)))
        # The tasks go on for ever: one that is done has failed.
        done, _ = await asyncio.wait((halt, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        clock.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.farewell):
                await asyncio.gather(*(device.drain() for device in fleet.values()))
    finally:
        for running in (halt, enrolment, *tasks):
            running.cancel()
        await asyncio.gather(halt, enrolment, *tasks, return_exceptions=True)
    return _sum(fleet)


async def _enrol(settings: Settings) -> dict[str, Credential]:
    async with Platform(
        settings.api, settings.email, settings.password, patience=settings.patience
    ) as platform:
        credentials = await enrol(platform, DEVICES, settings.state)
        await ensure_demo_rule(platform, DEMO_PUMP, credentials[DEMO_PUMP].id)
        return credentials


def _device(
    name: str,
    credential: Credential,
    settings: Settings,
    on_acknowledged: OnAcknowledged | None,
) -> Device:
    # Jitter only: it need not repeat, and devices must not share it.
    rng = Random()
    if name in HTTP_DEVICES:
        return HttpDevice(
            credential.id,
            credential.token,
            rng,
            on_acknowledged=on_acknowledged,
            url=settings.api,
        )
    return MqttDevice(
        credential.id,
        credential.token,
        rng,
        on_acknowledged=on_acknowledged,
        host=settings.mqtt_host,
        port=settings.mqtt_port,
    )


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


async def _let_time_pass(
    plant: Plant, fleet: dict[str, Device], settings: Settings, started: datetime
) -> None:
    loop = asyncio.get_running_loop()
    period = 1 / settings.rate
    dt = period * settings.speed
    turn, due = 0, loop.time()
    while True:
        turn += 1
        readings = plant.step(dt, started + timedelta(seconds=turn * dt))
        ts = time.time_ns() // 1_000_000
        for name, values in readings.items():
            fleet[name].offer(ts, values)
        # What was missed (the machine slept) stays missed: readings made in a hurry would all
        # claim to be from now.
        due = max(due + period, loop.time() - period)
        await asyncio.sleep(due - loop.time())


async def _tell(on_progress: OnProgress, plant: Plant, fleet: dict[str, Device]) -> None:
    loop = asyncio.get_running_loop()
    since, points = loop.time(), 0
    while True:
        stats, now = _sum(fleet), loop.time()
        on_progress(
            Progress(
                devices=len(fleet),
                connected=sum(device.is_connected for device in fleet.values()),
                turned_away=sum(device.is_refused for device in fleet.values()),
                backlog=sum(device.backlog for device in fleet.values()),
                stats=stats,
                points_per_s=(stats.points - points) / max(now - since, 1e-3),
                faults=tuple(str(fault) for fault in plant.active_faults()),
            )
        )
        since, points = now, stats.points
        await asyncio.sleep(1)


def _sum(fleet: dict[str, Device]) -> Stats:
    return reduce(add, (device.stats for device in fleet.values()), Stats())
