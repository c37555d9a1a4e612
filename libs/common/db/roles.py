"""The database roles: who may log in, and as what.

- `iiot_owner` owns every schema and may not log in. It is under row-level security itself
  (forced), so a data migration that must touch tenants' rows has to say so.
- `iiot_lookup` owns the look-ups that happen before the tenant is known (a login, a device's
  token): SECURITY DEFINER functions, which it may read through row-level security for. It may not
  log in, and sees just the tables granted to it.
- `<service>_rw` is what a service works as: its own schema only, under row-level security.
- `<service>_engine` crosses tenants by name, on the columns granted to it: due timers, outbox relay.
- `historian_writer` may insert points for every tenant and read none.
- `bus_rw` keeps the edge's log. `iiot_observer` reads everything for the operators' dashboards.
"""

import asyncpg

SERVICES = (
    "gateway",
    "tenancy",
    "ingest",
    "rules",
    "analytics",
    "ml",
    "alerting",
    "retention",
)

OWNER = "iiot_owner"
LOOKUP = "iiot_lookup"
OBSERVER = "iiot_observer"
HISTORIAN_WRITER = "historian_writer"
BUS = "bus_rw"

LOGIN_ROLES: dict[str, str] = {
    **{f"{service}_rw": "NOBYPASSRLS" for service in SERVICES},
    **{f"{service}_engine": "BYPASSRLS" for service in SERVICES},
    HISTORIAN_WRITER: "BYPASSRLS",
    BUS: "NOBYPASSRLS",
    OBSERVER: "BYPASSRLS",
}
"""Every role that logs in, with how it stands to row-level security."""


async def ensure_roles(admin_url: str, passwords: dict[str, str]) -> None:
    """Create the roles that are missing and set the passwords given; safe to run at every start.

    `admin_url` is that of a superuser. A login role without a password given keeps the one it has.
    """
    # Roles are the server's, locks a database's: all who install on this server meet in this one.
    connection = await asyncpg.connect(admin_url, database="postgres")
    try:
        async with connection.transaction():
            # Two installers at once would both find a role missing.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('iiot.roles'))")
            present = {r["rolname"] for r in await connection.fetch("SELECT rolname FROM pg_roles")}
            if OWNER not in present:
                await connection.execute(f"CREATE ROLE {OWNER} NOLOGIN NOBYPASSRLS")
            if LOOKUP not in present:
                await connection.execute(f"CREATE ROLE {LOOKUP} NOLOGIN BYPASSRLS")
            for role, bypass in LOGIN_ROLES.items():
                if role not in present:
                    await connection.execute(f"CREATE ROLE {role} NOINHERIT")
                await connection.execute(
                    f"ALTER ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {bypass}"
                )
                if role in passwords:
                    statement = await connection.fetchval(
                        "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)",
                        role,
                        passwords[role],
                    )
                    await connection.execute(statement)
    finally:
        await connection.close()
