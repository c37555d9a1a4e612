"""The first start lets one administrator in, once, however many replicas start."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from libs.common.auth.principal import KeySource
from libs.common.bus.local import LocalBus
from libs.common.clock import SystemClock
from libs.common.errors import Invalid
from services.tenancy.app import build
from services.tenancy.settings import Settings
from tests.database import DatabaseUrls
from tests.service.tenancy.conftest import PASSWORD

EMAIL = "admin@plant.local"


@pytest.fixture
async def admin(database_urls: DatabaseUrls) -> AsyncIterator[asyncpg.Connection]:
    """The database's admin, after removing every user and tenant."""
    connection = await asyncpg.connect(database_urls.admin)
    await connection.execute("TRUNCATE tenancy.users, tenancy.tenants CASCADE")
    yield connection
    await connection.close()


def first_start(settings: Settings, password: str = PASSWORD) -> Settings:
    """The settings with a first admin in them."""
    return Settings(
        **settings.model_dump()
        | {"first_admin_email": EMAIL.upper(), "first_admin_password": password}
    )


async def start(settings: Settings, urls: DatabaseUrls, keys: KeySource) -> None:
    """Start a replica and stop it again."""
    app = build(settings, LocalBus(urls.bus, SystemClock()), SystemClock(), keys=keys)
    async with app.router.lifespan_context(app):
        pass


async def test_two_replicas_that_start_at_once_make_one_administrator(
    admin: asyncpg.Connection, settings: Settings, database_urls: DatabaseUrls, keys: KeySource
) -> None:
    await asyncio.gather(*[start(first_start(settings), database_urls, keys) for _ in range(3)])
    [user] = await admin.fetch("SELECT * FROM tenancy.users")
    assert (user["email"], user["is_platform_admin"]) == (EMAIL, True)
    [tenant] = await admin.fetch("SELECT * FROM tenancy.tenants")
    assert tenant["slug"] == "default"
    [membership] = await admin.fetch("SELECT * FROM tenancy.memberships")
    assert (membership["user_id"], membership["tenant_id"], membership["roles"]) == (
        user["id"],
        tenant["tenant_id"],
        ["admin"],
    )
    said = await admin.fetch(
        "SELECT type FROM bus.log WHERE tenant_id = $1 ORDER BY position", tenant["tenant_id"]
    )
    assert [row["type"] for row in said] == [
        "tenant.created.v1",
        "tenant.quotas_set.v1",
        "user.created.v1",
        "membership.changed.v1",
    ]


async def test_a_later_start_changes_nothing_not_even_the_password(
    admin: asyncpg.Connection, settings: Settings, database_urls: DatabaseUrls, keys: KeySource
) -> None:
    await start(first_start(settings), database_urls, keys)
    before = await admin.fetch("SELECT * FROM tenancy.users")
    await start(first_start(settings, "quite another password"), database_urls, keys)
    assert await admin.fetch("SELECT * FROM tenancy.users") == before


async def test_without_a_first_admin_nobody_is_made(
    admin: asyncpg.Connection, settings: Settings, database_urls: DatabaseUrls, keys: KeySource
) -> None:
    await start(settings, database_urls, keys)
    assert await admin.fetchval("SELECT count(*) FROM tenancy.users") == 0


async def test_a_first_password_that_is_too_short_stops_the_start(
    admin: asyncpg.Connection, settings: Settings, database_urls: DatabaseUrls, keys: KeySource
) -> None:
    with pytest.raises(Invalid, match="TENANCY_FIRST_ADMIN_PASSWORD"):
        await start(first_start(settings, "short"), database_urls, keys)
    assert await admin.fetchval("SELECT count(*) FROM tenancy.users") == 0
