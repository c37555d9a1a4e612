"""Shows on a terminal, or on paper, how a simulated plant does."""

import asyncio
import logging
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clients.simulator.simulation import OnEnrolled, OnProgress, Progress, Settings, run

PLAIN_EVERY = 10
"""Seconds between two lines where nobody watches a terminal."""
MOST_FAULTS = 6
"""Faults that are named; of more only the number is told."""


def simulate(settings: Settings) -> None:
    """Run the plant until it is told to stop, and show how it does.

    Raises what `run` raises.
    """
    console = Console()
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    # A device has a connection of its own, and a shell mostly allows few.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_watch(settings, console))


async def _watch(settings: Settings, console: Console) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    with _on_terminal(console) if console.is_terminal else _on_paper(console) as shown:
        enrolled, progress = shown
        stats = await run(settings, stop, on_enrolled=enrolled, on_progress=progress)
    console.print(
        f"{stats.acknowledged} of {stats.offered} readings acknowledged ({stats.points} points)",
        highlight=False,
    )


@contextmanager
def _on_terminal(console: Console) -> Iterator[tuple[OnEnrolled, OnProgress]]:
    with Live("waiting for the platform", console=console, auto_refresh=False) as live:
        yield (
            lambda done, of: live.update(_bar(done, of), refresh=True),
            lambda progress: live.update(_table(progress), refresh=True),
        )


@contextmanager
def _on_paper(console: Console) -> Iterator[tuple[OnEnrolled, OnProgress]]:
    told = 0

    def show(progress: Progress) -> None:
        nonlocal told
        if told % PLAIN_EVERY == 0:
            console.print(_line(progress), highlight=False, soft_wrap=True)
        told += 1

    yield (
        lambda done, of: console.print(f"{done} of {of} devices registered", highlight=False),
        show,
    )


def _bar(done: int, of: int) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_row("registering devices", ProgressBar(of, done, width=40), f"{done} of {of}")
    return row


def _table(progress: Progress) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("protocol")
    for column in ("connected", "sent", "acknowledged", "waiting", "refused", "commands"):
        table.add_column(column, justify="right")
    for name, group in sorted(progress.groups.items()):
        stats = group.stats
        lost = stats.rejected + stats.dropped
        table.add_row(
            name,
            Text(
                f"{group.connected} of {group.devices}",
                style="" if group.connected == group.devices else "yellow",
            ),
            f"{stats.sent}",
            f"{stats.acknowledged}",
            f"{group.backlog}",
            Text(f"{lost}", style="red" if lost else ""),
            f"{stats.commands}",
        )
    return Group(
        table,
        Text(f"{progress.points_per_s:.0f} points/s", style="bold"),
        Text(_faults(progress), style="yellow"),
    )


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
        parts.append(f"[yellow]{_faults(progress)}[/yellow]")
    return " · ".join(parts)


def _faults(progress: Progress) -> str:
    named = ", ".join(progress.faults[:MOST_FAULTS])
    more = len(progress.faults) - MOST_FAULTS
    return f"{named} and {more} more" if more > 0 else named
