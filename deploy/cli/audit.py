"""Verifying the audit trails from outside of the platform, with the database alone."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from libs.common.db.engine import Database
from services.tenancy.domain.audit import Verdict
from services.tenancy.store.audit import verify


class NotReadable(Exception):
    """The trails cannot be read; says why."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What looking at a tenant's trail showed."""

    slug: str
    verdict: Verdict


async def verify_trails(url: str, slug: str | None) -> AsyncIterator[Verified]:
    """Look at the trail of one tenant, or of each, in bounded memory. `url` is a superuser's.

    Raises NotReadable.
    """
    database = Database(url, pool_size=1, across_tenants=True, application_name="iiot audit")
    try:
        async with database.connection() as connection:
            rows = await connection.execute(
                text(
                    "SELECT tenant_id, slug FROM tenancy.tenants"
                    " WHERE slug = coalesce(cast(:slug AS text), slug) ORDER BY slug"
                ),
                {"slug": slug},
            )
            tenants = rows.all()
            if slug is not None and not tenants:
                raise NotReadable(f"there is no tenant {slug!r}")
            for tenant in tenants:
                yield Verified(tenant.slug, await verify(connection, tenant.tenant_id))
    except (OSError, DBAPIError, asyncpg.PostgresError) as error:
        raise NotReadable(f"the database of DATABASE_ADMIN_URL: {error}") from error
    finally:
        await database.close()
