"""Saying, as tenancy does, what a tenant may have."""

import json
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from libs.common.bus.base import Bus
from libs.common.events.base import to_message
from libs.common.events.tenancy import QuotaTerms, TenantQuotasSet
from tests.database import DatabaseUrls
from tests.waiting import until


async def allow(
    bus: Bus, urls: DatabaseUrls, schema: str, tenant_id: UUID, **most: int | None
) -> None:
    """Let a tenant have so much of each resource, and wait until the service has heard it."""
    said = TenantQuotasSet(
        tenant_id=tenant_id,
        at=datetime.now(UTC),
        plan="test",
        quotas={resource: QuotaTerms(number, 80) for resource, number in most.items()},
    )
    await bus.publish([to_message(said)])
    admin = await asyncpg.connect(urls.admin)

    async def is_heard() -> bool:
        kept = await admin.fetch(
            f"SELECT resource, most FROM {schema}.quotas WHERE tenant_id = $1", tenant_id
        )
        return {row["resource"]: row["most"] for row in kept}.items() >= most.items()

    try:
        await until(is_heard, "the quotas are known")
    finally:
        await admin.close()


async def counted(urls: DatabaseUrls, tenant_id: UUID, resource: str) -> list[int]:
    """Return the amounts that were said to be used of a resource, in order."""
    admin = await asyncpg.connect(urls.admin)
    try:
        rows = await admin.fetch(
            "SELECT convert_from(body, 'UTF8')::jsonb AS body FROM bus.log"
            " WHERE type = 'usage.counted.v1' AND tenant_id = $1"
            " AND convert_from(body, 'UTF8')::jsonb->>'resource' = $2 ORDER BY position",
            tenant_id,
            resource,
        )
    finally:
        await admin.close()
    return [json.loads(row["body"])["amount"] for row in rows]
