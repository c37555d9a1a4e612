"""`python -m clients.simulator`: run the station against a platform and show how it goes."""

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.status import Status

from clients.simulator.faults import Fault, parse_fault
from clients.simulator.simulation import OnProgress, Progress, Settings, run
from clients.simulator.station import PlatformRefused

PLAIN_EVERY = 10
"""Seconds between two lines where nobody watches a terminal."""


def main(
    *,
    api: Annotated[str, typer.Option(help="URL of the platform.")] = "http://127.0.0.1:8000",
    mqtt: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:1883",
    email: Annotated[str, typer.Option(help="A user who may create devices and rules.")],
    password_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable with the password.")
    ] = "SIMULATOR_PASSWORD",  # noqa: S107 (the name of a variable, not a password)
    state: Annotated[
        Path, typer.Option(help="File that keeps the devices' credentials (mode 0600).")
    ],
    rate: Annotated[float, typer.Option(min=0.01, help="Readings a second per device.")] = 1.0,
    speed: Annotated[float, typer.Option(min=0.01, help="Plant seconds in a second.")] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:DEVICE[.METRIC][@START][+DURATION]",
            help="e.g. bearing_wear:pump-2@30s+3m; may be given several times.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same plant.")] = 1,
) -> None:
    """Simulate a pumping station: fourteen devices on real MQTT and HTTP connections."""
    console = Console()
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    password = os.environ.get(password_env)
    if not password:
        raise typer.BadParameter(f"the environment variable {password_env} is not set")
    host, port = _address(mqtt)
    settings = Settings(
        api=api,
        mqtt_host=host,
        mqtt_port=port,
        email=email,
        password=password,
        state=state,
        rate=rate,
        speed=speed,
        faults=tuple(_fault(text) for text in fault or ()),
        seed=seed,
    )
    try:
        asyncio.run(_watch(settings, console))
    except (PlatformRefused, ValueError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(1) from None


async def _watch(settings: Settings, console: Console) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if console.is_terminal:
        with console.status("waiting for the platform") as status:
            stats = await run(settings, stop, on_progress=_on_terminal(status))
    else:
        stats = await run(settings, stop, on_progress=_on_paper(console))
    console.print(
        f"{stats.acknowledged} of {stats.offered} readings acknowledged ({stats.points} points)",
        highlight=False,
    )


def _on_terminal(status: Status) -> OnProgress:
    def show(progress: Progress) -> None:
        status.update(_line(progress))

    return show


def _on_paper(console: Console) -> OnProgress:
    told = 0

    def show(progress: Progress) -> None:
        nonlocal told
        if told % PLAIN_EVERY == 0:
            console.print(_line(progress), highlight=False, soft_wrap=True)
        told += 1

    return show


def _line(progress: Progress) -> str:
    stats = progress.stats
    parts = [
        f"{progress.connected}/{progress.devices} devices",
        f"{progress.points_per_s:.0f} points/s",
        f"{stats.sent} sent",
        f"{stats.acknowledged} acknowledged",
    ]
    if progress.backlog > progress.devices:
        parts.append(f"{progress.backlog} waiting")
    if progress.turned_away:
        parts.append(f"[red]{progress.turned_away} turned away[/red]")
    if stats.rejected:
        parts.append(f"[red]{stats.rejected} rejected[/red]")
    if stats.dropped:
        parts.append(f"[red]{stats.dropped} dropped[/red]")
    if progress.faults:
        parts.append(f"[yellow]{', '.join(progress.faults)}[/yellow]")
    return " · ".join(parts)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _fault(text: str) -> Fault:
    try:
        return parse_fault(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
