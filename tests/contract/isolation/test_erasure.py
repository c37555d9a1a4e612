"""A tenant is removed: nothing of it stays in any table, and nothing of another one goes."""

import secrets
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.db.roles import SERVICES
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
        for service in SERVICES
    },
}
"""Tables that carry what is said of a tenant, its end included."""

EMPTY_BEFORE = {
    "ingest.placements": "has a row for the moment until it is said where a device is",
    "tenancy.removed_tenants": "has a row as soon as the tenant is gone",
    **{f"{service}.changes": "has rows within a transaction alone" for service in SERVICES},
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


REMAINS = {
    "tenancy.audit_log": "what the platform's admins did, in their own tenant's trail",
    "historian.tenant": "its number, as long as there are points; forgotten by retention",
}
"""Where else something of it may stand, beside what goes by the clock."""


COUNTED_ON = {
    "ingest.usage": "what is stored of the tenant is counted again every while",
    "tenancy.usage_days": "likewise, and calls are told a moment after they were made",
    "tenancy.usage_standing": "likewise",
}
"""What may change of the tenant that stays, and must not get less: it is counted by the clock."""


async def tables_with(
    platform: Platform,  # noqa: F811 - the fixture's value
    signs: list[str],
) -> dict[str, str]:
    """Return every table of the database that has a sign in any column, with a row of it.

    The bus of this platform is among them, and there is no Redis: what one keeps there in a cluster
    are the counts of rate limits, which end with their window.
    Bytes are searched as well: for the text's, and for a UUID's own sixteen.
    """
    tables = await platform.admin.fetch(
        "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = relnamespace WHERE relkind IN ('r', 'p', 'm') AND NOT relispartition"
        " AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') ORDER BY 1"
    )
    in_bytes = [sign.encode().hex() for sign in signs]
    ids = [UUID(sign).hex for sign in signs if len(sign) == 36 and sign.count("-") == 4]
    sought = "|".join([*signs, *in_bytes, *ids])
    found = {}
    for table in tables:
        row = await platform.admin.fetchval(
            f"SELECT left(t::text, 2000) FROM {table['name']} AS t WHERE t::text ~* $1 LIMIT 1",
            sought,
        )
        if row is not None:
            found[table["name"]] = row
    return found


async def given_up(
    platform: Platform,  # noqa: F811 - the fixture's value
) -> list[tuple[str, str, str]]:
    """Return what no subscriber could handle: who, what and why."""
    rows = await platform.admin.fetch("SELECT subscriber, type, reason FROM bus.dead_letters")
    return [tuple(row) for row in rows]


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
    await platform.until_quiet(stays.id)
    others = await platform.rows_of(stays.id)
    users = [
        row["user_id"]
        for row in await platform.admin.fetch(
            "SELECT user_id FROM tenancy.memberships WHERE tenant_id = $1", gone.id
        )
    ]

    devices = [
        str(row["id"])
        for row in await platform.admin.fetch(
            "SELECT id FROM ingest.devices WHERE tenant_id = $1", gone.id
        )
    ]
    # Its id, those of its devices and users, and the word that stands in all that it names: its slug,
    # its people's addresses, its devices, rules, keys.
    signs = [str(gone.id), gone.mark, *devices, *map(str, users)]
    found = await tables_with(platform, signs)
    assert {"ingest.devices", "tenancy.users", "alerting.alerts", "rules.rules"} <= set(found)

    path = f"/api/v1/tenants/{gone.id}"
    await root.call("PATCH", path, status="suspended")
    await root.call("DELETE", f"{path}?grace=PT0S")
    await until_left(platform, gone.id, {*KEPT_FOR_DAYS, *KEPT_UNTIL_SAID_AGAIN})
    assert not await platform.admin.fetch("SELECT FROM tenancy.users WHERE id = ANY($1)", users)

    # Something was under way: an event of another service's comes when the tenant is gone.
    await gone.alert(uuid4())
    assert "alerting.alerts" in await left(platform, gone.id)

    await say_again(platform)
    await until_left(platform, gone.id, set(KEPT_FOR_DAYS))

    # Not only where a column says whose a row is: in every column of every table.
    remains = await tables_with(platform, signs)
    assert remains.keys() <= {*KEPT_FOR_DAYS, *THE_BUSS_OWN, *REMAINS}, remains

    assert await given_up(platform) == []

    # Of the platform's own admin it stands who removed the tenant, and which.
    deleted = await root.call(
        "GET", f"/api/v1/audit/logs?action=tenant.deleted&resource_id={gone.id}"
    )
    assert [entry["label"] for entry in deleted["items"]] == [f"{gone.mark} works"]

    after = await platform.rows_of(stays.id)
    lost = {table for table in COUNTED_ON if after[table][0] < others[table][0]}
    assert not lost
    as_before = after.keys() - THE_BUSS_OWN.keys() - COUNTED_ON.keys()
    changed = {table for table in as_before if after[table] != others[table]}
    assert not changed


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
