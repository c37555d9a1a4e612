"""The commands. What a command needs is imported in it: an image need not hold what another needs."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from deploy.cli.tenants import tenants

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"
RELEASED = ROOT / "docs/api/openapi-v1.json"

PLATFORM = "The platform"
PLANT = "The plant"


def _door(what: str, port: int) -> Any:
    return typer.Option(
        metavar="HOST:PORT",
        help=f"Where {what} is spoken; absent: the URL's host, port {port}.",
        rich_help_panel=PLATFORM,
    )


app = typer.Typer(
    help="Operate the platform.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def migrate() -> None:
    """Make the roles that are missing and bring every schema to the newest version.

    The database's superuser is read from DATABASE_ADMIN_URL, the roles' passwords from
    DATABASE_PASSWORDS (JSON: {"ingest_rw": "…"}), or from files of these names in lower case in
    the secrets' folder (/run/secrets, or IIOT_SECRETS_DIR). Safe to run at every start, and from
    several machines at once. Exit code 0: everything is up to date.
    """
    from deploy.cli.migrate import Refused, migrate_platform

    try:
        migrate_platform(typer.echo)
    except Refused as refused:
        typer.echo(f"error: {refused}", err=True)
        raise typer.Exit(1) from None


@app.command()
def settings(
    *,
    write: Annotated[bool, typer.Option("--write", help="Write it to .env.example.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if .env.example says something else.")
    ] = False,
) -> None:
    """Print every setting with its type, default and meaning, as an .env file."""
    from deploy.cli.settings import example, missing_services

    if missing := missing_services():
        typer.echo(f"error: not in this image or checkout: {', '.join(missing)}", err=True)
        raise typer.Exit(1)
    text = example()
    if write:
        EXAMPLE.write_text(text)
        typer.echo(f"{EXAMPLE.name} written")
    elif check:
        if not EXAMPLE.exists() or EXAMPLE.read_text() != text:
            typer.echo("error: .env.example is stale; run `iiot settings --write`", err=True)
            raise typer.Exit(1)
        typer.echo(f"{EXAMPLE.name} is up to date")
    else:
        typer.echo(text, nl=False)


@app.command()
def openapi(
    *,
    write: Annotated[
        bool, typer.Option("--write", help="Make it the released one: docs/api/openapi-v1.json.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if it breaks clients of the released one.")
    ] = False,
    sdk: Annotated[
        bool, typer.Option("--sdk", help="Print the released one as generators of clients take it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --write: although it breaks clients.")
    ] = False,
) -> None:
    """Print the API's OpenAPI 3.1 document, made from the code alone.

    What breaks clients of the released document is named, and is not written without --force.
    """
    import json

    from deploy.cli.openapi import as_text, document, for_sdk
    from deploy.cli.openapi_changes import breaks

    if sdk:
        typer.echo(as_text(for_sdk(json.loads(RELEASED.read_text()))), nl=False)
        return
    described = document()
    if not write and not check:
        typer.echo(as_text(described), nl=False)
        return
    released = json.loads(RELEASED.read_text()) if RELEASED.exists() else {"paths": {}}
    found = breaks(released, described)
    for change in found:
        typer.echo(f"{'breaks' if change.is_break else 'warning'}: {change}", err=True)
    if any(change.is_break for change in found) and not force:
        raise typer.Exit(1)
    if write:
        RELEASED.write_text(as_text(described))
        typer.echo(f"{RELEASED.relative_to(ROOT)} written")


@app.command()
def permissions(
    *,
    write: Annotated[bool, typer.Option("--write", help="Write both.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if one says something else.")
    ] = False,
) -> None:
    """Print who may call what: the matrix of docs/permissions.md, from the routes and roles.

    Written with it is the table of operations that the services read. It wants the whole checkout.
    """
    from deploy.cli.permissions import MATRIX, TABLE, matrix, table

    for file, text in ((TABLE, table()), (MATRIX, matrix())):
        if write:
            file.write_text(text)
            typer.echo(f"{file.name} written")
        elif check and (not file.exists() or file.read_text() != text):
            typer.echo(f"error: {file.name} is stale; run `iiot permissions --write`", err=True)
            raise typer.Exit(1)
        elif not check and file is MATRIX:
            typer.echo(text, nl=False)


@app.command()
def simulate(
    *,
    api: Annotated[
        str, typer.Option(help="URL of the platform.", rich_help_panel=PLATFORM)
    ] = "http://127.0.0.1:8000",
    email: Annotated[
        str,
        typer.Option(help="A user who may create devices and rules.", rich_help_panel=PLATFORM),
    ],
    password_env: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The environment variable with the password.",
            rich_help_panel=PLATFORM,
        ),
    ] = "SIMULATOR_PASSWORD",  # noqa: S107 - the name of a variable, not a password
    state: Annotated[
        Path,
        typer.Option(
            help="File that keeps the devices' credentials (mode 0600).", rich_help_panel=PLATFORM
        ),
    ] = Path("simulator.json"),
    mqtt: Annotated[str | None, _door("MQTT 3.1.1 and 5", 1883)] = None,
    mqtt_websocket: Annotated[str | None, _door("MQTT over WebSocket", 8083)] = None,
    coap: Annotated[str | None, _door("CoAP (UDP; the tenant must allow it plain)", 5683)] = None,
    amqp: Annotated[str | None, _door("AMQP 0-9-1", 5672)] = None,
    opcua: Annotated[str | None, _door("OPC UA", 4840)] = None,
    devices: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="How many; a station has fourteen.", rich_help_panel=PLANT
        ),
    ] = 14,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SHARE]",
            help="What they speak, e.g. mqtt:8 and http:2; absent: MQTT and HTTP, by type of device."
            " Names: http, mqtt, mqtt5, mqtt-websocket, coap, amqp, opcua."
            " May be given several times.",
            rich_help_panel=PLANT,
        ),
    ] = None,
    rate: Annotated[
        float,
        typer.Option(min=0.001, help="Readings a second from each device.", rich_help_panel=PLANT),
    ] = 1.0,
    speed: Annotated[
        float,
        typer.Option(min=0.01, help="Plant seconds in a second.", rich_help_panel=PLANT),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(help="The same seed gives the same plant.", rich_help_panel=PLANT)
    ] = 1,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:DEVICE[.METRIC][@START][+DURATION]",
            help="e.g. bearing_wear:pump-2@30s+3m or dropout:station-2/motor-1@1m+forever;"
            " may be given several times."
            " Kinds: drift, spike, stuck, step, dropout, bearing_wear.",
            rich_help_panel=PLANT,
        ),
    ] = None,
    random_faults: Annotated[
        float,
        typer.Option(
            min=0,
            help="Faults an hour in each station, on the average.",
            rich_help_panel=PLANT,
        ),
    ] = 0.0,
) -> None:
    """Simulate a plant: pumping stations whose devices are coupled, on real connections.

    On its first start the plant registers its devices; the state file keeps their tokens. What a
    device measures stays with it until the platform has acknowledged it, also while the platform
    is away. Devices do what they are told: a pump starts and stops, a valve opens. Ends with Ctrl-C
    or SIGTERM, when what was measured is acknowledged, after ten seconds at the latest.

        SIMULATOR_PASSWORD=… iiot simulate --email admin@example.com --devices 140
            --protocol mqtt:8 --protocol http:2 --random-faults 2
    """
    import os

    from clients.simulator.console import simulate as run
    from clients.simulator.faults import parse_fault
    from clients.simulator.protocols import Doors
    from clients.simulator.simulation import Settings
    from clients.simulator.station import PlatformRefused

    password = os.environ.get(password_env)
    if not password:
        raise typer.BadParameter(f"the environment variable {password_env} is not set")
    given = {
        "mqtt": mqtt,
        "mqtt-websocket": mqtt_websocket,
        "coap": coap,
        "amqp": amqp,
        "opcua": opcua,
    }
    try:
        run(
            Settings(
                doors=Doors(api, {name: _address(text) for name, text in given.items() if text}),
                email=email,
                password=password,
                state=state,
                devices=devices,
                protocols=dict(_share(text) for text in protocol or ()),
                rate=rate,
                speed=speed,
                faults=tuple(parse_fault(text) for text in fault or ()),
                random_faults=random_faults,
                seed=seed,
            )
        )
    except (PlatformRefused, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


audit = typer.Typer(help="The tenants' audit trails.", no_args_is_help=True)
app.add_typer(audit, name="audit")


@audit.command("verify")
def verify_audit(
    *,
    url: Annotated[
        str,
        typer.Option(envvar="DATABASE_ADMIN_URL", show_envvar=True, help="A superuser's URL."),
    ],
    tenant: Annotated[
        str | None, typer.Option(help="Of this one alone, by its short name.")
    ] = None,
) -> None:
    """Look at every entry of the trails: is each as it was written, and none missing?

    Prints the hash of each trail's end: kept where nobody who runs the database can change it, it
    proves later that what was written until then is still the same. Exit code 1: a trail is broken.
    """
    import asyncio

    from deploy.cli.audit import NotReadable, verify_trails

    async def look() -> bool:
        all_are_whole = True
        async for found in verify_trails(url, tenant):
            verdict, head = found.verdict, found.verdict.head
            if verdict.ok:
                typer.echo(
                    f"{found.slug}: whole, {verdict.entries} entries up to {head.seq},"
                    f" head {head.hash.hex()}"
                )
            else:
                all_are_whole = False
                typer.echo(f"{found.slug}: BROKEN at entry {verdict.broken_at}: {verdict.reason}")
        return all_are_whole

    try:
        if not asyncio.run(look()):
            raise typer.Exit(1)
    except NotReadable as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


dead_letters = typer.Typer(
    help="What devices sent by AMQP and nobody could take: a device removed meanwhile, a message that"
    " its sender let expire. All tenants' lie in one queue. The broker is INGEST_AMQP_URL.",
    no_args_is_help=True,
)
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(tenants, name="tenants")

Broker = Annotated[str, typer.Option(envvar="INGEST_AMQP_URL", help="The devices' broker.")]
OfDevice = Annotated[str | None, typer.Option(help="Of this device alone, by its id.")]
Most = Annotated[int, typer.Option(min=1, max=10_000, help="How many, the oldest first.")]


@dead_letters.command("list")
def list_dead_letters(*, url: Broker, device: OfDevice = None, limit: Most = 20) -> None:
    """Print the oldest: whose it is, its size, and how it begins. They stay where they are."""
    from deploy.cli.dead_letters import dead_letters as look

    for letter in _of_broker(look(url, limit, device)):
        typer.echo(f"{letter.routing_key}  {letter.size} bytes  {letter.body[:80]!r}")


@dead_letters.command()
def replay(*, url: Broker, device: OfDevice = None, limit: Most = 1000) -> None:
    """Put the oldest back, as their devices sent them. What has its own `ts` is stored once."""
    from deploy.cli.dead_letters import replay as put_back

    typer.echo(f"{_of_broker(put_back(url, limit, device))} put back")


@dead_letters.command()
def discard(*, url: Broker, device: OfDevice = None, limit: Most) -> None:
    """Throw the oldest away, so many as --limit says."""
    from deploy.cli.dead_letters import discard as throw_away

    typer.echo(f"{_of_broker(throw_away(url, limit, device))} thrown away")


def _of_broker(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    from deploy.cli.dead_letters import BrokerRefused

    try:
        return asyncio.run(work)
    except BrokerRefused as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition(":")
    try:
        return name, float(share or 1)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not NAME or NAME:SHARE") from None
