"""What is done in a tenant stands in its trail, and stays there as it was written."""

import asyncio
import csv
import io
import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
from typer.testing import CliRunner, Result

from deploy.cli.main import app
from libs.common.clock import SystemClock
from libs.common.db.engine import Database
from libs.common.events.audit import AuditActor, AuditEntry, AuditRecorded
from services.tenancy.domain.audit import Verdict
from services.tenancy.store.audit import verify
from tests.service.tenancy.conftest import PASSWORD, Plant, World
from tests.waiting import until

LOGS = "/api/v1/audit/logs"


async def logs(world: World, plant: Plant, **filters: Any) -> list[dict[str, Any]]:
    """Return the newest entries, oldest first."""
    answer = await world.http.get(LOGS, params=filters, headers=plant.headers)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items[::-1]


async def until_logged(
    world: World, plant: Plant, count: int = 1, **filters: Any
) -> list[dict[str, Any]]:
    """Wait for so many entries of a kind; return them."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        nonlocal found
        found = await logs(world, plant, **filters)
        return len(found) >= count

    await until(there, f"{count} entries with {filters}")
    assert len(found) == count
    return found


async def record(world: World, plant: Plant, *entries: AuditEntry) -> AuditRecorded:
    """Let another service say that something happened."""
    event = AuditRecorded(
        tenant_id=plant.id,
        at=SystemClock().now(),
        service="ingest",
        actor=AuditActor(kind="user", id=uuid4(), address="192.0.2.7", request_id="r-1"),
        entries=list(entries),
    )
    await world.publish(event)
    return event


def touched(number: int, **more: Any) -> AuditEntry:
    return AuditEntry(
        action="device.updated",
        resource="device",
        resource_id=f"d{number}",
        **{"before": {"name": "a"}, "after": {"name": f"b{number}"}, **more},
    )


async def verification(world: World, plant: Plant) -> dict[str, Any]:
    answer = await world.http.get("/api/v1/audit/verification", headers=plant.headers)
    found: dict[str, Any] = answer.json()
    return found


async def test_a_change_stands_in_the_trail_with_who_made_it_from_where_and_what_it_was_before(
    world: World,
) -> None:
    plant = await world.plant()
    ann = await world.add_user(plant, f"{uuid4().hex}@plant.example")
    path = f"/api/v1/users/{ann['id']}"
    headers = {
        **plant.headers,
        "x-iiot-client-address": "192.0.2.9",
        "x-request-id": "req-77",
        "user-agent": "curl/8",
    }
    changed = await world.http.patch(path, json={"roles": ["viewer"]}, headers=headers)
    assert changed.status_code == 200, changed.text

    [joined, entry] = await until_logged(
        world, plant, 2, action="user.updated", resource_id=ann["id"]
    )
    assert joined["actor"]["kind"] == "service"  # the gateway, for who accepts an invitation
    assert (entry["before"], entry["after"]) == ({"roles": ["operator"]}, {"roles": ["viewer"]})
    assert entry["label"] == "Ann"
    assert (entry["service"], entry["request_id"]) == ("tenancy", "req-77")
    actor = entry["actor"]
    assert (actor["kind"], actor["address"], actor["user_agent"]) == ("user", "192.0.2.9", "curl/8")
    assert actor["id"]

    # Of the invitation it is said that there is one, and nothing by which it could be accepted.
    [invited] = await until_logged(world, plant, action="invitation.created", resource_id=ann["id"])
    assert invited["after"]["token_hash"] == "set"

    # What did not commit is not in the trail, and what changed nothing is no change.
    refused = await world.http.patch(path, json={"roles": ["king"]}, headers=headers)
    assert refused.status_code == 422
    await world.http.patch(path, json={"roles": ["viewer"]}, headers=headers)
    await world.http.patch(path, json={"name": "Anna"}, headers=headers)
    found = await until_logged(world, plant, 3, action="user.updated", resource_id=ann["id"])
    assert found[-1]["after"] == {"name": "Anna"}
    assert not await world.query("SELECT FROM tenancy.changes WHERE tenant_id = $1", plant.id)
    one = await world.http.get(f"{LOGS}/{entry['seq']}", headers=plant.headers)
    assert one.json() == entry


async def test_what_the_platforms_admin_does_to_a_tenant_stays_when_the_tenant_goes(
    world: World,
) -> None:
    home, away = await world.plant(), await world.plant()
    admin = world.principal_headers(home.id, "*", platform_admin=True)
    path = f"/api/v1/tenants/{away.id}"
    await world.http.patch(path, json={"status": "suspended"}, headers=admin)
    await until_logged(world, away, action="tenant.updated")
    assert (await world.http.delete(f"{path}?grace=PT0S", headers=admin)).status_code == 204

    [suspended] = await until_logged(world, home, action="tenant.updated", resource_id=str(away.id))
    assert suspended["after"] == {"status": "suspended"}
    [removed] = await until_logged(world, home, action="tenant.deleted")
    assert removed["resource_id"] == str(away.id)
    # What went with it is not told there, and its own trail is gone and does not come back.
    assert not await logs(world, home, action="user.deleted")
    for table in ("audit_log", "audit_heads", "changes"):
        rows = await world.query(f"SELECT FROM tenancy.{table} WHERE tenant_id = $1", away.id)
        assert not rows, table
    assert (await verification(world, home))["ok"]


async def test_an_event_that_comes_twice_is_recorded_once(world: World) -> None:
    plant = await world.plant()
    event = await record(world, plant, touched(1), touched(2))
    await world.publish(event)
    await record(world, plant, touched(3))
    await until_logged(world, plant, 1, resource_id="d3")
    assert [e["resource_id"] for e in await logs(world, plant, action="device.")] == [
        "d1",
        "d2",
        "d3",
    ]


async def test_the_trail_is_searched_paged_and_exported(world: World) -> None:
    plant = await world.plant()
    event = await record(
        world,
        plant,
        *(touched(number) for number in range(5)),
        AuditEntry(
            action="rule.deleted",
            resource="rule",
            label='=HYPERLINK("http://evil.example")',
            outcome="denied",
            before={"value": 1.50, "text": "ä\n\u2028"},
        ),
    )
    await until_logged(world, plant, 5, action="device.")
    for filters, count in (
        ({"actor_id": str(event.actor.id)}, 6),
        ({"resource": "rule"}, 1),
        ({"outcome": "denied"}, 1),
        ({"request_id": "r-1", "service": "ingest"}, 6),
        ({"service": "rules"}, 0),
        ({"action": "device"}, 0),
        ({"from": event.at.isoformat(), "service": "ingest"}, 6),
        ({"to": event.at.isoformat(), "service": "ingest"}, 0),
    ):
        assert len(await logs(world, plant, **filters)) == count, filters

    pages: list[list[str]] = []
    cursor: str | None = None
    while not pages or cursor:
        params: dict[str, Any] = {
            "action": "device.",
            "limit": 2,
            **({"cursor": cursor} if cursor else {}),
        }
        page = (await world.http.get(LOGS, params=params, headers=plant.headers)).json()
        pages.append([item["resource_id"] for item in page["items"]])
        cursor = page["next_cursor"]
    assert pages == [["d4", "d3"], ["d2", "d1"], ["d0"]]

    exported = await world.http.get(
        f"{LOGS}/export", params={"service": "ingest"}, headers=plant.headers
    )
    sheet = list(csv.DictReader(io.StringIO(exported.text)))
    assert sheet[0]["label"] == '\'=HYPERLINK("http://evil.example")'
    assert sheet[0]["before"] == '{"text":"ä\\n\u2028","value":1.5}'
    assert [row["resource_id"] for row in sheet[1:]] == ["d4", "d3", "d2", "d1", "d0"]
    lines = await world.http.get(
        f"{LOGS}/export",
        params={"format": "ndjson", "action": "device."},
        headers=plant.headers,
    )
    assert [json.loads(line)["resource_id"] for line in lines.text.splitlines()] == [
        f"d{number}" for number in (4, 3, 2, 1, 0)
    ]
    # Nobody else reads it.
    other = await world.plant()
    assert not await logs(world, other, service="ingest")
    viewer = world.principal_headers(plant.id, "devices:read")
    assert (await world.http.get(LOGS, headers=viewer)).status_code == 403


async def test_the_service_itself_cannot_change_what_it_wrote(world: World) -> None:
    plant = await world.plant()
    await record(world, plant, touched(1))
    await until_logged(world, plant, resource_id="d1")
    connection = await asyncpg.connect(world.urls.rw("tenancy"))
    try:
        await connection.execute(
            "SELECT set_config('app.tenant_ids', $1, false)", f"{{{plant.id}}}"
        )
        assert await connection.fetchval("SELECT count(*) FROM tenancy.audit_log") > 0
        for statement in (
            "UPDATE tenancy.audit_log SET label = 'x'",
            "DELETE FROM tenancy.audit_log",
            "TRUNCATE tenancy.audit_log",
            "DELETE FROM tenancy.audit_heads",
            "UPDATE tenancy.audit_heads SET first_seq = 3",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


FORGERIES = {
    "an entry is changed": (
        'UPDATE tenancy.audit_log SET after = \'{"name": "c"}\' WHERE tenant_id = $1 AND seq = 7',
        7,
        "the entry is not what was written",
    ),
    "an actor is changed": (
        "UPDATE tenancy.audit_log SET actor_id = gen_random_uuid() WHERE tenant_id = $1 AND seq = 7",
        7,
        "the entry is not what was written",
    ),
    "one in the middle is deleted": (
        "DELETE FROM tenancy.audit_log WHERE tenant_id = $1 AND seq = 6",
        6,
        "the entry is missing; 7 comes instead",
    ),
    "the end is cut off": (
        "DELETE FROM tenancy.audit_log WHERE tenant_id = $1 AND seq > 8",
        9,
        "the end is missing, up to",
    ),
    "the beginning is cut off": (
        "DELETE FROM tenancy.audit_log WHERE tenant_id = $1 AND seq < 3",
        1,
        "the entry is missing; 3 comes instead",
    ),
    "the head is turned back": (
        "UPDATE tenancy.audit_heads SET seq = 8 WHERE tenant_id = $1",
        8,
        "the head is not the hash of the last entry",
    ),
    "head and hash are turned back": (
        (
            "UPDATE tenancy.audit_heads AS h SET seq = 8, hash = l.hash FROM tenancy.audit_log AS l"
            " WHERE h.tenant_id = $1 AND l.tenant_id = $1 AND l.seq = 8"
        ),
        9,
        "there are entries beyond the head",
    ),
    "the head is removed": (
        (
            "SET LOCAL session_replication_role = replica;"
            " DELETE FROM tenancy.audit_heads WHERE tenant_id = '{tenant}'"
        ),
        1,
        "there are entries beyond the head",
    ),
}


async def test_what_an_administrator_of_the_database_changes_is_found(world: World) -> None:
    plant = await world.plant()
    await record(world, plant, *(touched(number, detail={"x": 1e30}) for number in range(8)))
    await until_logged(world, plant, 8, action="device.")
    whole = await verification(world, plant)
    assert whole["ok"]
    assert whole["entries"] == whole["head_seq"] > 10

    database = Database(world.urls.admin, pool_size=1, across_tenants=True)
    try:
        for forgery, (statement, seq, reason) in FORGERIES.items():
            async with database.engine.connect() as connection:
                if "{tenant}" in statement:
                    for part in statement.replace("{tenant}", str(plant.id)).split("; "):
                        await connection.exec_driver_sql(part)
                else:
                    await connection.exec_driver_sql(statement, (plant.id,))
                verdict: Verdict = await verify(connection, plant.id)
                assert verdict.broken_at == seq, forgery
                assert (verdict.reason or "").startswith(reason), forgery
                await connection.rollback()
        # What is trimmed on purpose leaves its anchor, and the rest verifies.
        async with database.engine.connect() as connection:
            await connection.exec_driver_sql(
                "UPDATE tenancy.audit_heads AS h SET first_seq = 4, first_prev_hash = l.prev_hash"
                " FROM tenancy.audit_log AS l"
                " WHERE h.tenant_id = $1 AND l.tenant_id = $1 AND l.seq = 4",
                (plant.id,),
            )
            await connection.exec_driver_sql(
                "DELETE FROM tenancy.audit_log WHERE tenant_id = $1 AND seq < 4", (plant.id,)
            )
            verdict = await verify(connection, plant.id)
            assert verdict.ok
            assert verdict.entries == whole["entries"] - 3
            await connection.rollback()
    finally:
        await database.close()
    assert await verification(world, plant) == whole


async def test_what_is_heard_of_a_tenant_that_is_gone_is_kept_nowhere(world: World) -> None:
    gone, stays = await world.plant(), await world.plant()
    path = f"/api/v1/tenants/{gone.id}"
    for method, where in (("POST", f"{path}/suspend"), ("DELETE", f"{path}?grace=PT0S")):
        answer = await world.http.request(method, where, headers=world.platform)
        assert answer.is_success, answer.text

    for _ in range(2):
        await record(world, gone, touched(1))
    # Heard after it, in the order of the bus.
    await record(world, stays, touched(2))
    await until_logged(world, stays, 1, action="device.")
    for table in ("tenancy.audit_log", "tenancy.audit_heads", "bus.retries", "bus.dead_letters"):
        rows = await world.query(
            f"SELECT FROM {table} AS t WHERE t::text ~ $1",
            f"{gone.id}|{str(gone.id).encode().hex()}|{gone.id.hex}",
        )
        assert not rows, table


async def test_the_command_says_which_trail_is_broken_and_where(world: World) -> None:
    whole, forged = await world.plant(), await world.plant()
    for plant in (whole, forged):
        await record(world, plant, touched(1))
        await until_logged(world, plant, 1, action="device.")

    async def said(slug: str) -> Result:
        url = {"DATABASE_ADMIN_URL": world.urls.admin}
        arguments = ["audit", "verify", "--tenant", slug]
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=url)

    before = await said(forged.slug)
    assert (before.exit_code, before.output.startswith(f"{forged.slug}: whole, ")) == (0, True)
    admin = await asyncpg.connect(world.urls.admin)
    try:
        await admin.execute(
            "UPDATE tenancy.audit_log SET label = 'another' WHERE tenant_id = $1 AND seq = 2",
            forged.id,
        )
    finally:
        await admin.close()
    found = await said(forged.slug)
    assert found.exit_code == 1
    assert found.output.startswith(f"{forged.slug}: BROKEN at entry 2: ")
    assert (await said(whole.slug)).exit_code == 0
    nobody = await said("nobody-at-all")
    assert (nobody.exit_code, "there is no tenant" in nobody.output) == (1, True)


async def test_who_is_refused_is_recorded_once_a_minute_with_how_often(world: World) -> None:
    plant = await world.plant()
    viewer = world.principal_headers(plant.id, "devices:read")

    async def ask() -> None:
        answer = await world.http.get("/api/v1/users", headers=viewer)
        assert answer.status_code == 403

    await ask()
    [first] = await until_logged(world, plant, action="access.denied")
    assert (first["outcome"], first["resource_id"]) == ("denied", "users:read")
    assert (first["detail"], first["actor"]["kind"]) == ({"count": 1}, "user")
    for _ in range(30):
        await ask()
    # It is written with the end of the minute, or of the process.
    await world.app.state.refusals.write()
    assert len(await logs(world, plant, action="access.denied")) == 1
    await world.app.state.refusals.finish()
    [_, rest] = await until_logged(world, plant, 2, action="access.denied")
    assert rest["detail"] == {"count": 30}


async def test_a_failed_login_is_recorded_where_the_user_belongs_and_nowhere_for_a_stranger(
    world: World,
) -> None:
    plant, other = await world.plant(), await world.plant()
    user = await world.add_user(plant, f"{uuid4().hex}@plant.example")

    async def fail(email: str) -> httpx2.Response:
        return await world.http.post(
            "/internal/v1/credentials/verify",
            json={"email": email, "password": "wrong"},
            headers={**world.gateway, "x-iiot-client-address": "198.51.100.3"},
        )

    stranger, known = await fail(f"{uuid4().hex}@nowhere.example"), await fail(user["email"])
    assert stranger.status_code == known.status_code == 401
    assert {**stranger.json(), "request_id": ""} == {**known.json(), "request_id": ""}
    [entry] = await until_logged(world, plant, action="login.failed")
    assert (entry["resource_id"], entry["outcome"]) == (user["id"], "failed")
    assert (entry["actor"]["kind"], entry["actor"]["id"]) == ("nobody", None)
    assert entry["actor"]["address"] == "198.51.100.3"
    assert not await logs(world, other, action="login.failed")
    # Neither what was tried nor what would have been right stands anywhere in it.
    text = json.dumps(await logs(world, plant))
    assert PASSWORD not in text
    assert "wrong" not in text
    assert "argon2" not in text
    rows = await world.query(
        "SELECT password_hash FROM tenancy.users WHERE id = $1", UUID(user["id"])
    )
    assert rows[0]["password_hash"] not in text
