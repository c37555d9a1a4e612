"""Migrations: each service its own history, in its own schema.

`alembic -n ingest upgrade head` runs one by hand (the admin's URL in DATABASE_ADMIN_URL);
`migrate_all` runs them all, in order, as `iiot migrate` and the edge's start do.
"""

import asyncio
import os
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from libs.common.db.roles import OWNER, SERVICES, ensure_roles

ROOT = Path(__file__).resolve().parents[2]

SECTIONS = ("platform", "bus", "historian", *SERVICES)
"""In the order they stand on each other: what all share first, then the services."""

SCHEMAS = {"platform": "sec"}
"""Where a section's schema is not called like the section."""


async def migrate_all(admin_url: str, passwords: dict[str, str]) -> None:
    """Bring roles and every schema of the database to the newest version.

    Safe to run at every start and from several processes at once (they wait for each other).
    `admin_url` is that of a superuser; `passwords` as in `ensure_roles`.
    """
    await ensure_roles(admin_url, passwords)
    for section in SECTIONS:
        if not (_folder(section) / "versions").is_dir():
            continue
        await asyncio.to_thread(command.upgrade, _config(section, admin_url), "head")


def run(section: str) -> None:
    """Run a section's migrations; the whole of every `migrations/env.py`."""
    schema = SCHEMAS.get(section, section)
    if context.is_offline_mode():
        context.configure(
            dialect_name="postgresql", literal_binds=True, version_table_schema=schema
        )
        with context.begin_transaction():
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {OWNER}")
            context.execute(f"SET LOCAL ROLE {OWNER}")
            context.run_migrations()
        return
    url = context.config.attributes.get("url") or os.environ.get("DATABASE_ADMIN_URL")
    if not url:
        raise SystemExit("set DATABASE_ADMIN_URL to a superuser's URL, or use `iiot migrate`")
    asyncio.run(_online(str(url), schema))


async def _online(url: str, schema: str) -> None:
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://", 1), poolclass=NullPool
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate, schema)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, schema: str) -> None:
    with connection.begin():
        # One at a time over all sections: they grant on each other's schemas.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('iiot.migrate'))"))
        # A migration that waits for a lock stops everyone behind it: rather fail and be run again.
        connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema} AUTHORIZATION {OWNER}"))
        connection.execute(text(f"SET LOCAL ROLE {OWNER}"))
        context.configure(connection=connection, version_table_schema=schema)
        context.run_migrations()


def _config(section: str, url: str) -> Config:
    config = Config(str(ROOT / "alembic.ini"), ini_section=section)
    config.attributes["url"] = url
    return config


def _folder(section: str) -> Path:
    location = Config(str(ROOT / "alembic.ini"), ini_section=section).get_main_option(
        "script_location"
    )
    assert location is not None, f"alembic.ini has no section [{section}]"
    return Path(location)
