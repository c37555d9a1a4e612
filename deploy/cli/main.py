"""The commands. What a command needs is imported in it: an image need not hold what another needs."""

from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / ".env.example"

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
