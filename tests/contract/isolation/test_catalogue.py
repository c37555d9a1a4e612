"""The database itself keeps tenants apart, and these checks would notice if it stopped to."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from libs.common.db.roles import LOGIN_ROLES, SERVICES
from tests.contract.isolation.catalogue import (
    CHECKS,
    Check,
    Connection,
    device_data_is_limited,
    everything_has_its_owner,
    functions_are_listed,
    keys_lead_with_the_tenant,
    partitions_are_closed,
    policies_are_ours,
    relations_are_of_known_kinds,
    roles_are_as_written,
    rows_of_others,
    schemas_are_used_as_listed,
    secrets_are_hidden,
    stale_reasons,
    tables_are_granted_as_listed,
    tenants_tables_are_protected,
    the_database_is_closed,
)
from tests.database import DatabaseUrls, fresh_database
from tests.servers import SharedServer


@pytest.fixture(scope="module")
def database_urls(postgres_server: SharedServer) -> DatabaseUrls:
    """A database of its own: faults are planted beside no other test's rows."""
    return fresh_database(postgres_server)


@pytest.fixture
async def admin(database_urls: DatabaseUrls) -> AsyncIterator[Connection]:
    """The database as its admin, in a transaction that is undone."""
    connection = await asyncpg.connect(database_urls.admin)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_database_keeps_the_rules_of_isolation(admin: Connection, check: Check) -> None:
    assert await check(admin) == []


async def test_every_exception_still_has_its_reason(admin: Connection) -> None:
    assert await stale_reasons(admin) == []


TABLE = "CREATE TABLE rules.t (tenant_id uuid NOT NULL, id uuid NOT NULL); ALTER TABLE rules.t OWNER TO iiot_owner;"
FUNCTION = "CREATE FUNCTION rules.f() RETURNS int LANGUAGE sql"

FAULTS: list[tuple[Check, str, str]] = [
    # What is a device's, and is shown to callers limited to others.
    (
        device_data_is_limited,
        "CREATE TABLE rules.t (tenant_id uuid NOT NULL, device_id uuid)",
        "rules.t: has ['device_id'], and no policy of reach",
    ),
    (device_data_is_limited, "DROP POLICY reach ON alerting.alerts", "alerting.alerts: has ["),
    (
        device_data_is_limited,
        "ALTER POLICY reach ON ml.anomalies TO ml_rw",
        "ml.anomalies: has [",
    ),
    (
        device_data_is_limited,
        "ALTER POLICY reach ON historian.points USING (true)",
        "historian.points: has [",
    ),
    (
        device_data_is_limited,
        "ALTER POLICY reach ON ingest.commands WITH CHECK (true)",
        "ingest.commands: has [",
    ),
    # A table that forgot its policy, or has half of it.
    (tenants_tables_are_protected, TABLE, "rules.t: row-level security is not enabled"),
    (tenants_tables_are_protected, "CREATE TABLE rules.t (id int)", "rules.t: has no tenant's"),
    (
        tenants_tables_are_protected,
        "ALTER TABLE ingest.devices DISABLE ROW LEVEL SECURITY",
        "ingest.devices: row-level security is not enabled",
    ),
    (
        tenants_tables_are_protected,
        "ALTER TABLE ingest.devices NO FORCE ROW LEVEL SECURITY",
        "ingest.devices: row-level security is not forced",
    ),
    (
        tenants_tables_are_protected,
        "DROP POLICY tenant_isolation ON rules.rules",
        "rules.rules: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        "ALTER POLICY tenant_isolation ON rules.rules USING (true)",
        "rules.rules: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        "ALTER POLICY tenant_isolation ON rules.rules WITH CHECK (true)",
        "rules.rules: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        "ALTER POLICY tenant_isolation ON historian.points TO ingest_rw",
        "historian.points: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        (
            "DROP POLICY tenant_isolation ON rules.rules;"
            "CREATE POLICY tenant_isolation ON rules.rules"
            " USING (tenant_id = ANY ((SELECT sec.tenants())::uuid[]))"
        ),
        "rules.rules: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        (
            "DROP POLICY tenant_isolation ON rules.rules;"
            "CREATE POLICY tenant_isolation ON rules.rules AS RESTRICTIVE FOR SELECT"
            " USING (tenant_id = ANY ((SELECT sec.tenants())::uuid[]))"
        ),
        "rules.rules: no restrictive policy",
    ),
    (
        tenants_tables_are_protected,
        f"{TABLE} ALTER TABLE rules.t ALTER tenant_id DROP NOT NULL",
        "rules.t: tenant_id may be null",
    ),
    (
        tenants_tables_are_protected,
        "ALTER TABLE tenancy.users DISABLE ROW LEVEL SECURITY",
        "tenancy.users: row-level security is not enabled",
    ),
    # A policy that nobody knows of.
    (
        policies_are_ours,
        "CREATE POLICY support ON rules.rules TO ml_rw USING (true)",
        "rules.rules: policy support",
    ),
    (
        policies_are_ours,
        "CREATE POLICY night ON rules.rules AS RESTRICTIVE USING (true)",
        "rules.rules: restrictive policy night",
    ),
    (
        policies_are_ours,
        "ALTER POLICY access ON rules.rules TO PUBLIC",
        "rules.rules: policy access",
    ),
    # Relations that row-level security does not reach.
    (
        relations_are_of_known_kinds,
        "CREATE VIEW rules.v AS SELECT * FROM rules.rules",
        "rules.v: a view without security_invoker",
    ),
    (
        relations_are_of_known_kinds,
        "CREATE MATERIALIZED VIEW rules.v AS SELECT * FROM rules.rules",
        "rules.v: a relation of kind 'm'",
    ),
    (relations_are_of_known_kinds, "CREATE TABLE public.t (id int)", "public.t: outside"),
    (
        relations_are_of_known_kinds,
        "CREATE SCHEMA other; CREATE TABLE other.t (id int)",
        "other.t: outside",
    ),
    (
        partitions_are_closed,
        "GRANT SELECT ON historian.points_default TO ingest_rw",
        "historian.points_default",
    ),
    # Grants.
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON ingest.devices TO rules_rw",
        "ingest.devices: rules_rw has SELECT",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT (name) ON ingest.devices TO rules_rw",
        "ingest.devices: rules_rw has SELECT(name)",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON ingest.devices TO PUBLIC",
        "ingest.devices: PUBLIC has SELECT",
    ),
    (
        tables_are_granted_as_listed,
        "CREATE ROLE someone; GRANT SELECT ON ingest.devices TO someone",
        "ingest.devices: someone has SELECT",
    ),
    *(
        (
            tables_are_granted_as_listed,
            f"GRANT {privilege} ON ingest.devices TO ingest_rw",
            f"ingest.devices: ingest_rw has ['{privilege}']",
        )
        for privilege in ("TRUNCATE", "REFERENCES", "TRIGGER")
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON ingest.devices TO ingest_engine",
        "ingest.devices: ingest_engine has SELECT",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT (reason) ON alerting.notifications TO alerting_engine",
        "alerting.notifications: alerting_engine has",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON ingest.outbox TO ingest_rw",
        "ingest.outbox: ingest_rw has INSERT SELECT",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON historian.points TO historian_writer",
        "historian.points: historian_writer has",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT UPDATE ON ingest.devices TO iiot_observer",
        "ingest.devices: iiot_observer has",
    ),
    (
        tables_are_granted_as_listed,
        "GRANT SELECT ON ingest.devices TO ingest_rw WITH GRANT OPTION",
        "ingest.devices: ingest_rw may grant on",
    ),
    (
        secrets_are_hidden,
        "GRANT SELECT ON ingest.credentials TO iiot_observer",
        "ingest.credentials.token_hash",
    ),
    (
        secrets_are_hidden,
        "GRANT SELECT (password_hash) ON tenancy.users TO iiot_observer",
        "tenancy.users.password_hash",
    ),
    # Functions with other rights than their caller's.
    (
        functions_are_listed,
        f"{FUNCTION} SECURITY DEFINER SET search_path = pg_catalog AS 'SELECT 1'",
        "rules.f(): SECURITY DEFINER and not listed",
    ),
    (functions_are_listed, f"{FUNCTION} AS 'SELECT 1'", "rules.f(): callers ['PUBLIC']"),
    (
        functions_are_listed,
        "ALTER FUNCTION historian.days() RESET search_path",
        "historian.days(): SECURITY DEFINER without a fixed search_path",
    ),
    (
        functions_are_listed,
        "ALTER FUNCTION historian.days() SET search_path = public, pg_catalog",
        "historian.days(): SECURITY DEFINER without a fixed search_path",
    ),
    (
        functions_are_listed,
        "GRANT EXECUTE ON FUNCTION ingest.device_of_token(bytea) TO PUBLIC",
        "ingest.device_of_token(bytea): callers",
    ),
    (
        functions_are_listed,
        "GRANT EXECUTE ON FUNCTION tenancy.all_tenants TO tenancy_rw",
        "tenancy.all_tenants(timestamp with time zone,uuid,integer): callers",
    ),
    (
        functions_are_listed,
        "ALTER FUNCTION historian.days() OWNER TO postgres",
        "historian.days(): owned by postgres",
    ),
    # Roles.
    (roles_are_as_written, "ALTER ROLE ingest_rw BYPASSRLS", "ingest_rw: is not NOBYPASSRLS"),
    (roles_are_as_written, "ALTER ROLE iiot_owner BYPASSRLS", "iiot_owner: is not NOBYPASSRLS"),
    (roles_are_as_written, "ALTER ROLE ingest_rw SUPERUSER", "ingest_rw: has rolsuper"),
    (roles_are_as_written, "ALTER ROLE ingest_rw CREATEROLE", "ingest_rw: has rolcreaterole"),
    (roles_are_as_written, "ALTER ROLE ingest_rw INHERIT", "ingest_rw: is not NOINHERIT"),
    (roles_are_as_written, "ALTER ROLE iiot_lookup LOGIN", "iiot_lookup: LOGIN is True"),
    (roles_are_as_written, "CREATE ROLE someone BYPASSRLS", "someone: an unknown role"),
    (
        roles_are_as_written,
        "GRANT iiot_owner TO ingest_rw",
        "ingest_rw: is a member of iiot_owner",
    ),
    (
        roles_are_as_written,
        "GRANT pg_read_all_data TO ingest_rw",
        "ingest_rw: is a member of pg_read_all_data",
    ),
    (
        roles_are_as_written,
        "ALTER ROLE ingest_rw SET app.tenant_ids = '{}'",
        "ingest_rw: always has app.tenant_ids",
    ),
    # Schemas, owners.
    (
        schemas_are_used_as_listed,
        "GRANT USAGE ON SCHEMA ingest TO rules_rw",
        "schema ingest: rules_rw has USAGE",
    ),
    (
        schemas_are_used_as_listed,
        "GRANT CREATE ON SCHEMA ingest TO ingest_rw",
        "schema ingest: ingest_rw has CREATE",
    ),
    (
        schemas_are_used_as_listed,
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "schema public: PUBLIC has CREATE",
    ),
    (schemas_are_used_as_listed, "CREATE SCHEMA other", "schema other: not ours"),
    (
        schemas_are_used_as_listed,
        "ALTER SCHEMA ingest OWNER TO ingest_rw",
        "schema ingest: owned by ingest_rw",
    ),
    (
        everything_has_its_owner,
        "ALTER TABLE ingest.devices OWNER TO ingest_rw",
        "ingest.devices: owned by ingest_rw",
    ),
    # Keys.
    (
        keys_lead_with_the_tenant,
        "CREATE UNIQUE INDEX oracle ON ingest.devices (name)",
        "ingest.oracle: unique, and leads with name",
    ),
    (
        keys_lead_with_the_tenant,
        "CREATE INDEX slow ON ingest.devices (name)",
        "ingest.slow: an index that leads with name",
    ),
    (
        keys_lead_with_the_tenant,
        (
            "ALTER TABLE ingest.devices ADD UNIQUE (id); ALTER TABLE ingest.quarantine"
            " ADD CONSTRAINT reaches FOREIGN KEY (device_id) REFERENCES ingest.devices (id)"
        ),
        "ingest.reaches: a foreign key that leads with ('device_id', 'id')",
    ),
    (
        keys_lead_with_the_tenant,
        (
            "ALTER TABLE rules.rules ADD CONSTRAINT reaches"
            " FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices"
        ),
        "rules.reaches: a foreign key into another service's ingest.devices",
    ),
    # The database.
    (
        the_database_is_closed,
        "DO $$ BEGIN EXECUTE format('GRANT TEMP ON DATABASE %I TO PUBLIC', current_database()); END $$",
        "the database: PUBLIC has TEMPORARY",
    ),
    (
        the_database_is_closed,
        "ALTER DEFAULT PRIVILEGES FOR ROLE iiot_owner GRANT SELECT ON TABLES TO PUBLIC",
        "default privileges: iiot_owner",
    ),
    (
        the_database_is_closed,
        (
            "CREATE FUNCTION rules.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
            "CREATE TRIGGER copies AFTER INSERT ON rules.rules EXECUTE FUNCTION rules.f()"
        ),
        "trigger: copies on rules.rules",
    ),
    (
        the_database_is_closed,
        "CREATE RULE copies AS ON INSERT TO rules.rules DO ALSO NOTHING",
        "rule: copies on rules.rules",
    ),
    (
        the_database_is_closed,
        "CREATE PUBLICATION everything FOR TABLE rules.rules",
        "publication: everything",
    ),
    (
        the_database_is_closed,
        "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO ingest_rw",
        "grant outside our schemas: ingest_rw on function pg_read_file(text)",
    ),
]


@pytest.mark.parametrize(
    ("check", "fault", "report"), FAULTS, ids=[f"{f[0].__name__}: {f[1]}" for f in FAULTS]
)
async def test_a_planted_fault_is_reported(
    admin: Connection, check: Check, fault: str, report: str
) -> None:
    await admin.execute(fault)
    assert any(line.startswith(report) for line in await check(admin)), await check(admin)


def test_every_check_was_seen_to_fail() -> None:
    assert {fault[0] for fault in FAULTS} == set(CHECKS)


async def plant_two_tenants(admin: Connection) -> tuple[UUID, UUID]:
    """Write a row of each of two tenants where a role reads: a device, a series and a point."""
    tenants = uuid4(), uuid4()
    for number, tenant in enumerate(tenants, start=1_000_001):
        await admin.execute(
            "INSERT INTO ingest.devices (tenant_id, id, name, type, created_at, updated_at)"
            " VALUES ($1, $1, 'press', 'press', now(), now())",
            tenant,
        )
        await admin.execute(
            "INSERT INTO historian.tenant (number, id) OVERRIDING SYSTEM VALUE VALUES ($1, $2)",
            number,
            tenant,
        )
        await admin.execute(
            "INSERT INTO historian.points (ts, value, tenant, series, quality)"
            " VALUES (now(), 1, $1, 1, 0)",
            number,
        )
    return tenants


@pytest.mark.parametrize("role", [f"{service}_rw" for service in SERVICES])
async def test_plain_sql_without_a_predicate_sees_the_bound_tenant_alone(
    admin: Connection, role: str
) -> None:
    mine, _ = await plant_two_tenants(admin)
    assert await rows_of_others(admin, role, mine) == []


@pytest.mark.parametrize(
    ("role", "table"), [("ingest_rw", "ingest.devices"), ("ml_rw", "historian.points")]
)
async def test_plain_sql_sees_others_once_the_policy_is_gone(
    admin: Connection, role: str, table: str
) -> None:
    mine, _ = await plant_two_tenants(admin)
    await admin.execute(f"DROP POLICY tenant_isolation ON {table}")
    assert await rows_of_others(admin, role, mine) == [f"{table}: {role} sees rows of others"]


@pytest.mark.parametrize("role", LOGIN_ROLES)
async def test_nobody_shadows_names_with_temporary_objects(
    database_urls: DatabaseUrls, role: str
) -> None:
    connection = await asyncpg.connect(database_urls.role(role))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE DOMAIN pg_temp.uuid AS pg_catalog.uuid")
    finally:
        await connection.close()
