"""No tenant's table is forgotten by the audit trail, and none tells a secret to it."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.contract.isolation.allowed import AUDITED, NOT_AUDITED, OPEN_TABLES
from tests.contract.isolation.catalogue import Connection
from tests.database import DatabaseUrls

SECRET = r"(secret|token|password|hash|sealed|private|credential|recovery|seed)"
NO_SECRET = {
    "tenancy.api_keys.handle": "the part of a key that it is shown by",
}


@pytest.fixture
async def admin(database_urls: DatabaseUrls) -> AsyncIterator[Connection]:
    """The database as its admin, in a transaction that is undone."""
    connection = await asyncpg.connect(database_urls.admin)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def test_what_somebody_changes_in_a_tenants_table_is_noted_or_there_is_a_reason(
    admin: Connection,
) -> None:
    rows = await admin.fetch(
        """
        SELECT nspname || '.' || relname AS name, (
          SELECT array_agg(tgtype & 28) FROM pg_trigger
          WHERE tgrelid = c.oid AND tgfoid = (nspname || '.note_changes')::regproc
        ) AS triggers
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        JOIN pg_attribute a ON attrelid = c.oid AND attname IN ('tenant_id', 'tenant')
        WHERE relkind IN ('r', 'p') AND NOT relispartition AND NOT attisdropped
          AND nspname !~ '^pg_' AND nspname NOT IN ('historian', 'bus')
        """
    )
    insert, delete, update = 4, 8, 16
    audited = {
        row["name"] for row in rows if sorted(row["triggers"] or ()) == [insert, delete, update]
    }
    tables = {row["name"] for row in rows} - OPEN_TABLES.keys()
    forgotten = tables - audited - NOT_AUDITED.keys()
    assert not forgotten, (
        f"{sorted(forgotten)}: say `audited(table, resource=…)` (libs.common.db.ddl) in its"
        " migration, which must come after the one that says `create_changes`, and add it to"
        " AUDITED; or to NOT_AUDITED, with the reason (both in tests/contract/isolation/allowed.py)"
    )
    assert audited == set(AUDITED)
    historian = {name for name in NOT_AUDITED if name.startswith("historian.")}
    assert not (NOT_AUDITED.keys() & audited) | (NOT_AUDITED.keys() - tables - historian)


async def test_a_column_that_is_called_like_a_secret_is_hidden_from_the_trail(
    admin: Connection,
) -> None:
    rows = await admin.fetch(
        """
        SELECT c.oid::regclass || '.' || attname AS name, encode(tgargs, 'escape') AS arguments
        FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid JOIN pg_attribute a ON attrelid = c.oid
        WHERE tgname = 'audited_insert' AND attnum > 0 AND NOT attisdropped
          AND attname ~ $1 AND atttypid NOT IN ('bytea'::regtype, 'bytea[]'::regtype)
        """,
        SECRET,
    )
    for row in rows:
        column = row["name"].rpartition(".")[2]
        *_, ignored, hidden, _end = row["arguments"].split("\\000")
        hidden_columns = {*hidden.strip("{}").split(","), *ignored.strip("{}").split(",")}
        assert column in hidden_columns, f"{row['name']}: name it in `secret=` of its `audited`"


async def act(admin: Connection, tenant: UUID, actor: str) -> None:
    await admin.execute(
        "SELECT set_config('app.tenant_ids', $1, true), set_config('app.actor', $2, true)",
        f"{{{tenant}}}",
        actor,
    )


async def test_only_what_differs_is_noted_cut_and_without_secrets_and_only_if_somebody_acts(
    admin: Connection,
) -> None:
    tenant = uuid4()

    async def notes() -> list[asyncpg.Record]:
        return await admin.fetch(
            "DELETE FROM ingest.changes RETURNING action, resource, label, before::text, after::text"
        )

    async def add(name: str) -> None:
        await admin.execute(
            "INSERT INTO ingest.connectors (tenant_id, id, name, kind, is_enabled, settings, secrets,"
            " created_at, updated_at, version)"
            " VALUES ($1, gen_random_uuid(), $2, 'mqtt', true, '{}', $3, now(), now(), 1)",
            tenant,
            name,
            '{"password": "canary-1"}',
        )

    await admin.execute("SET LOCAL ROLE ingest_rw")
    await act(admin, tenant, "")
    await add("by nobody")
    assert await notes() == []

    await act(admin, tenant, '{"kind": "user"}')
    await add("press")
    [created] = await notes()
    assert (created["action"], created["label"], created["before"]) == ("created", "press", None)
    assert '"secrets": "set"' in created["after"]

    # Several rows by one statement; what is ignored and what stays the same is no change.
    await admin.execute("UPDATE ingest.connectors SET version = 2, reason = 'r', kind = kind")
    assert await notes() == []
    long = "x" * 3000
    await admin.execute(
        "UPDATE ingest.connectors SET settings = jsonb_build_object('topic', $1::text),"
        " secrets = '{\"password\": \"canary-2\"}' WHERE name = 'press'",
        long,
    )
    [updated] = await notes()
    assert updated["before"] == '{"settings": {}}'
    assert "(3013 characters)" in updated["after"]
    assert len(updated["after"]) < 700
    assert '"secrets": "changed"' in updated["after"]
    await admin.execute("DELETE FROM ingest.connectors")
    both = await notes()
    assert [note["action"] for note in both] == ["deleted", "deleted"]
    assert not any("canary" in str(dict(note)) for note in (created, updated, *both))


async def test_what_goes_with_another_row_is_noted_too(admin: Connection) -> None:
    tenant, device = uuid4(), uuid4()
    await admin.execute("SET LOCAL ROLE ingest_rw")
    await act(admin, tenant, '{"kind": "user"}')
    await admin.execute(
        "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
        " VALUES ($1, $2, 'press', 'press', now(), now())",
        tenant,
        device,
    )
    await admin.execute(
        "INSERT INTO ingest.credentials (tenant_id, device_id, token_hash, created_at)"
        " VALUES ($1, $2, '\\xabcd', now())",
        tenant,
        device,
    )
    await admin.execute("DELETE FROM ingest.devices WHERE id = $1", device)
    rows = await admin.fetch(
        "SELECT resource || '.' || action AS what, after::text FROM ingest.changes ORDER BY seq"
    )
    assert sorted(row["what"] for row in rows) == [
        "device.created",
        "device.deleted",
        "device_credential.created",
        "device_credential.deleted",
    ]
    assert not any("abcd" in (row["after"] or "") for row in rows)
