"""A tenant is removed: nothing of it stays in any table, and nothing of another one goes."""

import secrets
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.events.tenancy import TenantDeleted
from services.tenancy.jobs import remove_again
from tests.contract.isolation.test_walk import (
    ADMIN,
    METRIC,
    Platform,
    Tenant,
    platform,  # noqa: F401 - a fixture
    urls,  # noqa: F401 - a fixture of that one
)
from tests.waiting import until

THE_BUSS_OWN = {
    "bus.log": "events on their way; dropped when every subscriber has read them",
    "bus.dead_letters": "what could not be handled, for the operators",
    **{
        f"{service}.outbox": "events on their way; the relay removes them (the local bus has none)"
        for service in (
            *("gateway", "tenancy", "ingest", "rules"),
            *("analytics", "ml", "alerting", "retention"),
        )
    },
}
"""Tables that carry what is said of a tenant, its end included."""

EMPTY_BEFORE = {
    "tenancy.removed_tenants": "has a row as soon as the tenant is gone",
}
"""Tables in which a tenant that is there has nothing."""

KEPT_FOR_DAYS = {
    "historian.points": "their names are gone; erased as soon as they are a day old, by retention",
    "historian.texts": "likewise",
    "ingest.tenants": "that its devices are shut out, for a week: no late event lets them in",
}
"""What goes by the clock: tests/service/retention/test_gone_tenants.py, and for the last
tests/service/ingest/test_closed_tenants.py."""

KEPT_UNTIL_SAID_AGAIN = {
    "gateway.sessions": "revoked; a replica that missed the event finds them here",
    "gateway.refresh_tokens": "void with their sessions",
    "gateway.tickets": "void with their sessions",
    "tenancy.removed_tenants": "that there was one, until its end is said again a day later",
}
"""What goes when `tenant.deleted` is said for the second time."""


async def settle(tenant: Tenant) -> None:
    """Leave something of the tenant in every table."""
    await tenant.settle()
    answer = await tenant.platform.http.post(
        "/api/v1/telemetry",
        json={"device_id": await tenant.device(), "values": {METRIC: 20.5, "mode": "auto"}},
        headers=await tenant.credential(),
    )
    assert answer.is_success, answer.text


async def counts(platform: Platform, tenant: UUID) -> dict[str, int]:  # noqa: F811 - the fixture's value
    found = {table: count for table, (count, _) in (await platform.rows_of(tenant)).items()}
    return {table: count for table, count in found.items() if table not in THE_BUSS_OWN}


async def left(platform: Platform, tenant: UUID) -> set[str]:  # noqa: F811 - the fixture's value
    return {table for table, count in (await counts(platform, tenant)).items() if count}


async def until_left(platform: Platform, tenant: UUID, allowed: set[str]) -> None:  # noqa: F811 - the fixture's value
    """Wait until nothing of a tenant is left but what may be, and for what else is under way."""
    seen: set[str] = set()

    async def nothing_more() -> bool:
        nonlocal seen
        seen = await left(platform, tenant)
        return seen <= allowed

    try:
        await until(nothing_more, "the tenant is erased", within_s=30)
    except AssertionError:
        raise AssertionError(f"left of the tenant: {sorted(seen - allowed)}") from None
    await platform.until_quiet(tenant)
    assert await left(platform, tenant) <= allowed


@pytest.mark.timeout(300)
async def test_nothing_of_a_removed_tenant_stays_and_nothing_of_another_goes(
    platform: Platform,  # noqa: F811 - the fixture's value
) -> None:
    root = Tenant(platform, uuid4(), ADMIN, "root")
    gone = await platform.open_tenant(root, f"gone-{secrets.token_hex(4)}")
    stays = await platform.open_tenant(root, f"stays-{secrets.token_hex(4)}")
    await settle(gone)
    await settle(stays)
    await platform.until_quiet(stays.id)
    await platform.until_quiet(gone.id)

    before = await counts(platform, gone.id)
    nothing = {table for table, count in before.items() if not count}
    assert nothing == set(EMPTY_BEFORE), "what is empty before proves nothing"
    # What was counted of its points is in the ledger then.
    await stays.call("GET", "/api/v1/telemetry/ledger")
    others = await platform.rows_of(stays.id)
    users = [
        row["user_id"]
        for row in await platform.admin.fetch(
            "SELECT user_id FROM tenancy.memberships WHERE tenant_id = $1", gone.id
        )
    ]

    path = f"/api/v1/tenants/{gone.id}"
    await root.call("PATCH", path, status="suspended")
    await root.call("DELETE", path)
    await until_left(platform, gone.id, {*KEPT_FOR_DAYS, *KEPT_UNTIL_SAID_AGAIN})
    assert not await platform.admin.fetch("SELECT FROM tenancy.users WHERE id = ANY($1)", users)

    # Something was under way: an event of another service's comes when the tenant is gone.
    await gone.alert()
    assert "alerting.alerts" in await left(platform, gone.id)

    await say_again(platform)
    await until_left(platform, gone.id, set(KEPT_FOR_DAYS))

    after = await platform.rows_of(stays.id)
    assert {t: rows for t, rows in after.items() if t not in THE_BUSS_OWN} == {
        t: rows for t, rows in others.items() if t not in THE_BUSS_OWN
    }


async def say_again(platform: Platform) -> None:  # noqa: F811 - the fixture's value
    """Do what tenancy does a day later."""
    clock = SystemClock()
    clock.offset = timedelta(days=1, minutes=1)
    said = "SELECT FROM bus.log WHERE type = $1"
    once = len(await platform.admin.fetch(said, TenantDeleted.type))
    engine = Database(platform.urls.engine("tenancy"), across_tenants=True)
    transactions = platform.apps["tenancy"].state.transactions
    try:
        await remove_again(engine, transactions, clock, timedelta(days=1))
        # Another replica finds nothing to be said.
        await remove_again(engine, transactions, clock, timedelta(days=1))
    finally:
        await engine.close()
    assert len(await platform.admin.fetch(said, TenantDeleted.type)) == once + 1
