"""`make run`: the whole platform in one process, with a simulated plant, from nothing."""

import asyncio
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from deploy.edge import demo
from deploy.edge.catcher import Catcher
from deploy.edge.platform import SERVICES, Options, Platform, running
from deploy.local import servers
from deploy.local.database import PlatformDatabase
from deploy.local.errors import ServerError
from deploy.local.processes import free_from, is_port_free, keep_ports
from deploy.local.state import State
from libs.common import log
from libs.common.bus.local import MAX_BYTES
from libs.common.clock import SystemClock
from libs.common.http.bounds import raise_open_files

ROOT = Path(__file__).resolve().parents[2]
POSTGRES_CONFIG: dict[str, str | int] = {
    # All pools of all services at once, and some for whoever looks into it or saves it.
    "max_connections": 160,
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
}
GB = 1024**3
COAP_PORT = 5683
OPCUA_PORT = 4840

console = Console(highlight=False, soft_wrap=True)


def main(
    *,
    port: Annotated[int, typer.Option(help="Where the API and the pages are served.")] = 8000,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    mqtt_port: Annotated[int, typer.Option(help="Where devices connect, if it is free.")] = 1883,
    sim: Annotated[str, typer.Option(help="off (or 0) leaves the simulated plant out.")] = "on",
    state: Annotated[
        Path, typer.Option(help="The folder that keeps everything between starts.")
    ] = ROOT / ".run",
    log_max_gb: Annotated[
        float,
        typer.Option(min=0.25, help="How large the event log may grow before devices must wait."),
    ] = MAX_BYTES / GB,
) -> None:
    """Run the whole platform in one process. Ctrl-C stops it; its state stays."""
    state.mkdir(parents=True, exist_ok=True)
    log.configure("edge", level="info", file=state / "log" / "edge.log", silent=True)
    raise_open_files()
    try:
        uvloop.run(
            _run(
                port,
                host,
                mqtt_port,
                state,
                with_plant=sim not in {"off", "0", "no", "false"},
                log_max_bytes=int(log_max_gb * GB),
            )
        )
    except (ServerError, _Taken) as error:
        console.print(f"[red]{error}[/red]")
        sys.exit(1)


class _Taken(Exception):
    """A port that must be this one is someone else's."""


async def _run(
    port: int, host: str, mqtt_port: int, folder: Path, *, with_plant: bool, log_max_bytes: int
) -> None:
    if not is_port_free(port):
        raise _Taken(f"Port {port} is taken. Choose another: make run PORT={port + 1}")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    state = State.load(folder / "state.json")
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        console.print("Starting PostgreSQL …")
        server = servers.postgres(folder / "postgres", config=POSTGRES_CONFIG, wheel_first=True)
        await asyncio.to_thread(server.start)
        stack.push_async_callback(asyncio.to_thread, server.stop)
        database = PlatformDatabase(server, folder / "passwords.json")
        console.print("Bringing the database up to date …")
        await database.prepare()

        ports = keep_ports(folder / "ports.json", ["smtp", "inbox"])
        catcher = Catcher(
            folder / "inbox", smtp_port=ports["smtp"], http_port=ports["inbox"], clock=clock
        )
        await catcher.start()
        stack.push_async_callback(catcher.stop)

        console.print("Starting the services …")
        options = Options(
            host=host,
            port=port,
            mqtt_port=free_from(mqtt_port),
            coap_port=free_from(COAP_PORT, socket.SOCK_DGRAM),
            opcua_port=free_from(OPCUA_PORT),
            state_dir=folder / "ingest",
            admin_email=state.admin_email,
            admin_password=state.admin_password,
            smtp=(catcher.host, catcher.smtp_port),
            webhooks=(catcher.host, catcher.http_port),
            log_max_bytes=log_max_bytes,
        )
        platform = await stack.enter_async_context(running(database, clock, options))
        await demo.ensure_channels(platform.url, state, catcher)
        if with_plant:
            await stack.enter_async_context(
                demo.plant(platform.url, platform.mqtt_port, state, folder)
            )
        _show(platform, server, catcher, state, mqtt_port, folder, with_plant=with_plant)
        await stop.wait()
        console.print("\nStopping …")
    console.print(f"Stopped. The state stays in {folder}.")


def _show(
    platform: Platform,
    server: servers.DatabaseServer,
    catcher: Catcher,
    state: State,
    wanted_mqtt_port: int,
    folder: Path,
    *,
    with_plant: bool,
) -> None:
    parts = Table(box=None, padding=(0, 2), show_header=False)
    parts.add_column(no_wrap=True)
    parts.add_column(overflow="fold")  # a path that is cut short leads nowhere
    parts.add_row("[bold]API and docs[/bold]", f"{platform.url}/api/v1/docs")
    parts.add_row("[bold]Inbox[/bold]", f"{catcher.url}  (mails, and webhooks of alerts)")
    parts.add_row("[bold]Log in as[/bold]", f"{state.admin_email}   {state.admin_password}")
    mqtt = f"{platform.mqtt_port}"
    if platform.mqtt_port != wanted_mqtt_port:
        mqtt += f"  ({wanted_mqtt_port} is taken by another program)"
    parts.add_row("Devices, MQTT", f"127.0.0.1:{mqtt}")
    coap_port = platform.apps["ingest"].state.coap_port
    parts.add_row("Devices, CoAP", f"127.0.0.1:{coap_port} (UDP)")
    opcua_port = platform.apps["ingest"].state.opcua_port
    parts.add_row("Devices, OPC UA", f"opc.tcp://127.0.0.1:{opcua_port}")
    parts.add_row("Services", f"all {len(SERVICES) + 1}, in this process")
    parts.add_row("Database", f"{server.name}, private, in {folder / 'postgres'}")
    parts.add_row("Event bus", "a durable log in that database")
    parts.add_row("Cache", "in this process")
    if with_plant:
        parts.add_row("Plant", "14 simulated devices; pump-2's bearing is about to run hot")
    parts.add_row("Log", str(folder / "log" / "edge.log"))
    console.print()
    console.print(parts)
    console.print()
    console.print("Three things to try:", style="bold")
    for line in _suggestions(platform, state):
        console.print(f"  {line}")
    console.print("\nCtrl-C stops it.")


def _suggestions(platform: Platform, state: State) -> list[str]:
    api = f"{platform.url}/api/v1"
    return [
        f"TOKEN=$(curl -s {api}/auth/login -H 'content-type: application/json' \\",
        (
            f'  -d \'{{"email":"{state.admin_email}","password":"{state.admin_password}"}}\''
            " | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"access_token\"])')"
        ),
        f'curl -s {api}/alerts -H "authorization: Bearer $TOKEN"',
        f'curl -s {api}/devices -H "authorization: Bearer $TOKEN"',
    ]


if __name__ == "__main__":
    typer.run(main)
