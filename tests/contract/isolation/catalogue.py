"""Questions to PostgreSQL's catalogue: what in this database stands outside the rules of isolation?

Each check returns a line for every fault, and none on a sound database. What may deviate is in
`allowed.py`, with reasons.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeAlias
from uuid import UUID

import asyncpg

from libs.common.db.roles import LOGIN_ROLES, LOOKUP, OBSERVER, OWNER
from tests.contract.isolation import allowed

# Only the driver's stubs know that a connection says what its records are.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Check: TypeAlias = "Callable[[Connection], Awaitable[list[str]]]"

_BOUND = "ANY (( SELECT sec.tenants() AS tenants)::uuid[])"
_NUMBERED = "ANY (( SELECT historian.tenant_numbers() AS tenant_numbers)::integer[])"
EXPRESSIONS = {"tenant_id": f"(tenant_id = {_BOUND})", "tenant": f"(tenant = {_NUMBERED})"}
"""What a tenant's policy reads, by the column it looks at."""

_UNLIMITED = "((( SELECT sec.groups() AS groups) IS NULL) OR "
_OF_DEVICES = ("series", "alert_id", "anomaly_id", "command_id", "model_id", "rule_id")
"""What names something that is a device's, besides what has a device in its name."""

_EVERYDAY = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_OURS = "nspname !~ '^pg_(toast|temp)' AND nspname NOT IN ('pg_catalog', 'information_schema')"
Privileges = dict[str, frozenset[str] | None]
"""Privilege -> the columns it is given on, or None for the whole table."""


async def tenants_tables_are_protected(connection: Connection) -> list[str]:
    """Every table has its tenant's policy, enabled, forced and restrictive, or a reason."""
    faults = []
    policies = await _policies(connection)
    for table in await _tables(connection):
        name, column = table["name"], table["column"]
        if name in allowed.OPEN_TABLES:
            continue
        if column is None and name not in allowed.FOREIGN_TENANCY:
            faults.append(f"{name}: has no tenant's column and no reason")
            continue
        if not table["relrowsecurity"]:
            faults.append(f"{name}: row-level security is not enabled")
        if not table["relforcerowsecurity"]:
            faults.append(f"{name}: row-level security is not forced on its owner")
        if column is None:
            continue
        if not table["not_null"]:
            faults.append(f"{name}: {column} may be null")
        expected = EXPRESSIONS[column]
        restrictive = [
            p for p in policies if p["name"] == name and p["permissive"] == "RESTRICTIVE"
        ]
        if not any(
            (p["roles"], p["cmd"], p["qual"], p["with_check"])
            == (["public"], "ALL", expected, expected)
            for p in restrictive
        ):
            faults.append(f"{name}: no restrictive policy with exactly {expected}")
    return faults


async def policies_are_ours(connection: Connection) -> list[str]:
    """There is no policy but the two of `protect`, that of `limit_to_reach`, and those with a reason."""
    faults = []
    for policy in await _policies(connection):
        name = policy["name"]
        if policy["permissive"] == "RESTRICTIVE":
            if policy["policyname"] not in ("tenant_isolation", "reach"):
                faults.append(f"{name}: restrictive policy {policy['policyname']} is not known")
        elif (name, policy["policyname"]) not in allowed.OTHER_POLICIES:
            own = [f"{name.partition('.')[0]}_rw"]
            if policy["policyname"] != "access" or policy["roles"] != own:
                faults.append(f"{name}: policy {policy['policyname']} for {policy['roles']}")
    return faults


async def device_data_is_limited(connection: Connection) -> list[str]:
    """Every table whose rows hang on a device shows the limited what lies in their reach, or has a reason."""
    limited = {
        policy["name"]
        for policy in await _policies(connection)
        if (policy["policyname"], policy["permissive"]) == ("reach", "RESTRICTIVE")
        and (policy["roles"], policy["cmd"]) == (["public"], "ALL")
        and policy["qual"] == policy["with_check"]
        and policy["qual"].startswith(_UNLIMITED)
        and "true" not in policy["qual"].partition(_UNLIMITED)[2]
    }
    rows = await connection.fetch(
        f"""
        SELECT nspname || '.' || relname AS name, array_agg(attname::text) AS columns
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        JOIN pg_namespace n ON n.oid = relnamespace
        WHERE {_OURS} AND relkind IN ('r', 'p') AND NOT relispartition AND NOT attisdropped
          AND (attname LIKE '%device%' OR attname = ANY($1)) GROUP BY 1
        """,
        list(_OF_DEVICES),
    )
    return [
        f"{row['name']}: has {row['columns']}, and no policy of reach"
        for row in rows
        if row["name"] not in limited and row["name"] not in allowed.BEYOND_REACH
    ]


async def relations_are_of_known_kinds(connection: Connection) -> list[str]:
    """No materialised or definer's view, no foreign table, and nothing outside our schemas."""
    faults = []
    for row in await connection.fetch(
        f"""
        SELECT nspname AS schema, nspname || '.' || relname AS name, relkind::text AS kind,
          coalesce(reloptions, '{{}}') && '{{security_invoker=true,security_invoker=on}}' AS invoker
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE {_OURS} AND relkind NOT IN ('i', 'I', 't', 'c')
        """
    ):
        if row["schema"] not in allowed.OUR_SCHEMAS:
            faults.append(f"{row['name']}: outside our schemas")
        if row["kind"] == "v" and not row["invoker"]:
            faults.append(f"{row['name']}: a view without security_invoker")
        if row["kind"] not in "rpSv":
            faults.append(f"{row['name']}: a relation of kind {row['kind']!r}")
    return faults


async def partitions_are_closed(connection: Connection) -> list[str]:
    """A partition asked directly ignores its parent's policies: nobody may."""
    return [
        f"{name}: {privileges} for {role} on a partition"
        for (role, name), privileges in (await _grants(connection)).items()
        if name in await _partitions(connection) and (role, name) not in allowed.GRANTS
    ]


async def tables_are_granted_as_listed(connection: Connection) -> list[str]:
    """A service works on its own tenants' tables; everything else is on the list, to the column."""
    faults = []
    guarded = {
        table["name"]
        for table in await _tables(connection)
        if table["column"] is not None and table["name"] not in allowed.OPEN_TABLES
    }
    partitions = await _partitions(connection)
    for (role, name), privileges in (await _grants(connection)).items():
        if name in partitions:
            continue
        schema = name.partition(".")[0]
        grant = allowed.GRANTS.get((role, name))
        if grant is not None:
            if privileges != parse(grant.privileges):
                faults.append(f"{name}: {role} has {_show(privileges)}, not {grant.privileges}")
        elif role == OBSERVER:
            if set(privileges) != {"SELECT"}:
                faults.append(f"{name}: {role} has {_show(privileges)}")
        elif role != f"{schema}_rw" or name not in guarded:
            faults.append(f"{name}: {role} has {_show(privileges)}, and no reason is listed")
        elif extra := set(privileges) - _EVERYDAY:
            faults.append(f"{name}: {role} has {sorted(extra)}")
    rows = await connection.fetch(
        f"""
        SELECT nspname || '.' || relname AS name, grantee::regrole::text AS role
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        CROSS JOIN LATERAL aclexplode(relacl) WHERE {_OURS} AND is_grantable AND grantee <> relowner
        UNION SELECT nspname || '.' || relname, grantee::regrole::text
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        JOIN pg_namespace n ON n.oid = relnamespace CROSS JOIN LATERAL aclexplode(attacl)
        WHERE {_OURS} AND is_grantable AND grantee <> relowner
        """
    )
    faults += [f"{row['name']}: {row['role']} may grant on" for row in rows]
    return faults


async def secrets_are_hidden(connection: Connection) -> list[str]:
    """The observer reads every tenant's rows, and no secret, address or message in them."""
    rows = await connection.fetch(
        f"""
        SELECT nspname || '.' || relname || '.' || attname AS name
        FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
        JOIN pg_namespace n ON n.oid = relnamespace
        WHERE {_OURS} AND attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'v')
          AND (attname = ANY($1) OR atttypid = 'bytea'::regtype)
          AND has_column_privilege('{OBSERVER}', c.oid, attnum, 'SELECT')
        """,
        list(allowed.HIDDEN_FROM_OBSERVER),
    )
    return [f"{row['name']}: {OBSERVER} reads it" for row in rows]


async def functions_are_listed(connection: Connection) -> list[str]:
    """Who runs a function with other rights than their own is listed, and its path is fixed."""
    faults = []
    for row in await connection.fetch(
        f"""
        SELECT nspname || '.' || proname || '(' || coalesce((
            SELECT string_agg(format_type(t, NULL), ',' ORDER BY i)
            FROM unnest(proargtypes) WITH ORDINALITY AS a(t, i)), '') || ')' AS name,
          prosecdef, coalesce(proconfig, '{{}}') AS config, proowner::regrole::text AS owner,
          lanname::text AS language,
          (SELECT coalesce(array_agg(CASE grantee WHEN 0 THEN 'PUBLIC'
                                     ELSE grantee::regrole::text END), '{{}}')
           FROM aclexplode(coalesce(proacl, acldefault('f', proowner)))
           WHERE grantee <> proowner) AS callers
        FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace JOIN pg_language l ON l.oid = prolang
        WHERE {_OURS}
        """
    ):
        name, callers = row["name"], frozenset(row["callers"])
        if row["language"] not in {"sql", "plpgsql"}:
            faults.append(f"{name}: written in {row['language']}")
        if not row["prosecdef"]:
            if callers != allowed.PLAIN_FUNCTIONS.get(name):
                faults.append(f"{name}: callers {sorted(callers)} are not as listed")
            if row["owner"] != OWNER:
                faults.append(f"{name}: owned by {row['owner']}")
            continue
        # Fixed, and without pg_temp (see the check of the database itself).
        if "search_path=pg_catalog" not in row["config"]:
            faults.append(f"{name}: SECURITY DEFINER without a fixed search_path")
        listed = allowed.DEFINERS.get(name)
        if listed is None:
            faults.append(f"{name}: SECURITY DEFINER and not listed; callers {sorted(callers)}")
            continue
        if row["owner"] != listed.owner:
            faults.append(f"{name}: owned by {row['owner']}, not {listed.owner}")
        if callers != listed.callers:
            faults.append(f"{name}: callers {sorted(callers)} are not as listed")
    return faults


async def roles_are_as_written(connection: Connection) -> list[str]:
    """Each role is what `libs.common.db.roles` says; no other one crosses tenants or is a member."""
    faults = []
    rows = await connection.fetch("SELECT * FROM pg_roles WHERE rolname !~ '^pg_'")
    known = {OWNER: ("NOBYPASSRLS", False), LOOKUP: ("BYPASSRLS", False)}
    known |= {role: (bypass, True) for role, bypass in LOGIN_ROLES.items()}
    for row in rows:
        name = row["rolname"]
        if name not in known:
            if row["rolbypassrls"] and not row["rolsuper"]:
                faults.append(f"{name}: an unknown role with BYPASSRLS")
            continue
        bypass, logs_in = known.pop(name)
        if row["rolbypassrls"] != (bypass == "BYPASSRLS"):
            faults.append(f"{name}: is not {bypass}")
        if row["rolcanlogin"] != logs_in:
            faults.append(f"{name}: LOGIN is {row['rolcanlogin']}")
        if logs_in and row["rolinherit"]:
            faults.append(f"{name}: is not NOINHERIT")
        rights = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication")
        faults += [f"{name}: has {right}" for right in rights if row[right]]
    faults += [f"{name}: is missing" for name in known]
    ours = [OWNER, LOOKUP, *LOGIN_ROLES]
    for row in await connection.fetch(
        """
        SELECT roleid::regrole::text AS role, member::regrole::text AS member FROM pg_auth_members
        WHERE roleid::regrole::text = ANY($1) OR member::regrole::text = ANY($1)
        """,
        ours,
    ):
        faults.append(f"{row['member']}: is a member of {row['role']}")
    for row in await connection.fetch(
        """
        SELECT coalesce(rolname, 'everyone') AS role, unnest(setconfig) AS setting
        FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = setrole
        WHERE (setdatabase = 0 OR setdatabase = (
            SELECT oid FROM pg_database WHERE datname = current_database()))
          AND (setrole = 0 OR rolname = ANY($1))
        """,
        ours,
    ):
        if re.match(r"app\.|role=|row_security|search_path|session_|local_preload", row["setting"]):
            faults.append(f"{row['role']}: always has {row['setting']}")
    return faults


async def schemas_are_used_as_listed(connection: Connection) -> list[str]:
    """Who may use a schema is listed; nobody creates in one."""
    faults = []
    rows = await connection.fetch(
        f"""
        SELECT nspname::text AS name, nspowner::regrole::text AS owner, privilege_type AS privilege,
          CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role, is_grantable
        FROM pg_namespace
        LEFT JOIN LATERAL aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a
          ON grantee <> nspowner
        WHERE {_OURS}
        """
    )
    for row in rows:
        name, role = row["name"], row["role"]
        if name == "public":
            # PostgreSQL's own, and empty: see relations_are_of_known_kinds.
            if role is not None and (role, row["privilege"]) != ("PUBLIC", "USAGE"):
                faults.append(f"schema public: {role} has {row['privilege']}")
            continue
        if name not in allowed.OUR_SCHEMAS:
            faults.append(f"schema {name}: not ours")
            continue
        if row["owner"] != OWNER:
            faults.append(f"schema {name}: owned by {row['owner']}")
        if role is None:
            continue
        if row["privilege"] != "USAGE" or role not in allowed.SCHEMA_USERS[name]:
            faults.append(f"schema {name}: {role} has {row['privilege']}")
        if row["is_grantable"]:
            faults.append(f"schema {name}: {role} may grant on")
    return faults


async def everything_has_its_owner(connection: Connection) -> list[str]:
    """Tables, sequences and types are the owner's, who may not log in."""
    rows = await connection.fetch(
        f"""
        SELECT nspname || '.' || relname AS name, relowner::regrole::text AS owner
        FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        WHERE {_OURS} AND relkind NOT IN ('i', 'I', 't', 'c')
        UNION ALL
        SELECT nspname || '.' || typname, typowner::regrole::text
        FROM pg_type JOIN pg_namespace n ON n.oid = typnamespace
        WHERE {_OURS} AND typtype IN ('d', 'e', 'r', 'm')
        """
    )
    return [f"{r['name']}: owned by {r['owner']}" for r in rows if r["owner"] != OWNER]


async def keys_lead_with_the_tenant(connection: Connection) -> list[str]:
    """A unique key over tenants tells one of another's rows; a foreign key reaches into them."""
    faults = []
    columns = {
        table["name"]: table["column"]
        for table in await _tables(connection)
        if table["column"] and table["name"] not in allowed.OPEN_TABLES
    }
    for row in await connection.fetch(
        f"""
        SELECT nspname || '.' || t.relname AS table, nspname || '.' || x.relname AS name,
          indisunique OR indisexclusion AS exclusive, pg_get_indexdef(indexrelid, 1, true) AS leads
        FROM pg_index JOIN pg_class t ON t.oid = indrelid JOIN pg_class x ON x.oid = indexrelid
        JOIN pg_namespace n ON n.oid = t.relnamespace WHERE {_OURS} AND NOT t.relispartition
        """
    ):
        if row["table"] not in columns or row["leads"] == columns[row["table"]]:
            continue
        if row["exclusive"]:
            if row["name"] not in allowed.UNIQUE_ACROSS_TENANTS:
                faults.append(f"{row['name']}: unique, and leads with {row['leads']}")
        elif row["name"] not in allowed.INDEXES_ACROSS_TENANTS:
            faults.append(f"{row['name']}: an index that leads with {row['leads']}")
    for row in await connection.fetch(
        f"""
        SELECT n.nspname || '.' || t.relname AS table, n.nspname || '.' || conname AS name,
          confrelid::regclass::text AS target, a.attname::text AS here, b.attname::text AS there
        FROM pg_constraint JOIN pg_class t ON t.oid = conrelid
        JOIN pg_namespace n ON n.oid = t.relnamespace
        JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
        JOIN pg_attribute b ON b.attrelid = confrelid AND b.attnum = confkey[1]
        WHERE contype = 'f' AND {_OURS} AND NOT t.relispartition
        """
    ):
        of_tenants = row["table"] in columns or row["target"] in columns
        joined = (row["here"], row["there"])
        leads = joined == (columns.get(row["table"]), columns.get(row["target"]))
        if of_tenants and not leads and row["name"] not in allowed.KEYS_ACROSS_TENANTS:
            faults.append(f"{row['name']}: a foreign key that leads with {joined}")
        if row["table"].partition(".")[0] != row["target"].partition(".")[0]:
            faults.append(f"{row['name']}: a foreign key into another service's {row['target']}")
    return faults


async def the_database_is_closed(connection: Connection) -> list[str]:
    """No temporary objects (they shadow names in SECURITY DEFINER functions), no back doors."""
    rows = await connection.fetch(
        """
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role,
          privilege_type AS privilege
        FROM pg_database CROSS JOIN LATERAL aclexplode(coalesce(datacl, acldefault('d', datdba)))
        WHERE datname = current_database() AND grantee <> datdba
        """
    )
    faults = [
        f"the database: {row['role']} has {row['privilege']}"
        for row in rows
        if row["privilege"] != "CONNECT" or row["role"] not in LOGIN_ROLES
    ]
    rows = await connection.fetch(
        f"""
        SELECT 'default privileges' AS kind, defaclrole::regrole::text AS name FROM pg_default_acl
        UNION ALL SELECT 'trigger', tgname || ' on ' || tgrelid::regclass FROM pg_trigger
          WHERE NOT tgisinternal
        UNION ALL SELECT 'rule', rulename || ' on ' || ev_class::regclass
          FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class
          JOIN pg_namespace n ON n.oid = relnamespace WHERE {_OURS} AND rulename <> '_RETURN'
        UNION ALL SELECT 'event trigger', evtname::text FROM pg_event_trigger
        UNION ALL SELECT 'publication', pubname::text FROM pg_publication
        UNION ALL SELECT 'foreign server', srvname::text FROM pg_foreign_server
        UNION ALL SELECT 'large object', oid::text FROM pg_largeobject_metadata
        UNION ALL SELECT 'extension', extname::text FROM pg_extension WHERE extname <> 'plpgsql'
        UNION ALL SELECT 'grant outside our schemas', refobjid::regrole || ' on '
            || pg_describe_object(classid, objid, objsubid)
          FROM pg_shdepend s LEFT JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid
          LEFT JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid
          WHERE deptype = 'a' AND refobjid::regrole::text = ANY($1)
            AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid <> 'pg_namespace'::regclass
            AND coalesce(p.pronamespace, c.relnamespace)::regnamespace::text <> ALL($2)
        """,
        [OWNER, LOOKUP, *LOGIN_ROLES],
        list(allowed.OUR_SCHEMAS),
    )
    found = {f"{row['kind']}: {row['name']}" for row in rows}
    listed = {f"trigger: {name}" for name in allowed.TRIGGERS}
    faults += [f"{name}: listed, and not there" for name in sorted(listed - found)]
    return [*faults, *sorted(found - listed)]


CHECKS: Sequence[Check] = (
    tenants_tables_are_protected,
    device_data_is_limited,
    policies_are_ours,
    relations_are_of_known_kinds,
    partitions_are_closed,
    tables_are_granted_as_listed,
    secrets_are_hidden,
    functions_are_listed,
    roles_are_as_written,
    schemas_are_used_as_listed,
    everything_has_its_owner,
    keys_lead_with_the_tenant,
    the_database_is_closed,
)


async def stale_reasons(connection: Connection) -> list[str]:
    """Return what is on a list of reasons though nothing in the database answers to it."""
    there = {table["name"] for table in await _tables(connection)}
    granted = await _grants(connection)
    policies = {(p["name"], p["policyname"]) for p in await _policies(connection)}
    functions = {
        row["name"]
        for row in await connection.fetch(
            f"""
            SELECT nspname || '.' || proname || '(' || coalesce((
              SELECT string_agg(format_type(t, NULL), ',' ORDER BY i)
              FROM unnest(proargtypes) WITH ORDINALITY AS a(t, i)), '') || ')' AS name
            FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE {_OURS}
            """
        )
    }
    indexes = {
        row["name"]
        for row in await connection.fetch(
            f"""
            SELECT nspname || '.' || relname AS name FROM pg_class
            JOIN pg_namespace n ON n.oid = relnamespace WHERE {_OURS} AND relkind IN ('i', 'I')
            UNION SELECT nspname || '.' || conname FROM pg_constraint
            JOIN pg_namespace n ON n.oid = connamespace WHERE {_OURS}
            """
        )
    }

    def stale() -> Iterator[str]:
        yield from allowed.OPEN_TABLES.keys() - there
        yield from allowed.FOREIGN_TENANCY.keys() - there
        yield from (f"policy {p}" for p in allowed.OTHER_POLICIES.keys() - policies)
        yield from allowed.BEYOND_REACH.keys() - there
        yield from (allowed.DEFINERS.keys() | allowed.PLAIN_FUNCTIONS.keys()) - functions
        yield from (f"grant {g}" for g in allowed.GRANTS.keys() - granted.keys())
        yield from allowed.UNIQUE_ACROSS_TENANTS.keys() - indexes
        yield from allowed.INDEXES_ACROSS_TENANTS.keys() - indexes
        yield from allowed.KEYS_ACROSS_TENANTS.keys() - indexes

    return sorted(stale())


def parse(privileges: str) -> Privileges:
    """Read `SELECT(a, b) DELETE`."""
    return {
        name: frozenset(columns.replace(" ", "").split(",")) if columns else None
        for name, columns in re.findall(r"([A-Z]+)(?:\(([^)]*)\))?", privileges)
    }


def _show(privileges: Privileges) -> str:
    return " ".join(
        name if columns is None else f"{name}({', '.join(sorted(columns))})"
        for name, columns in sorted(privileges.items())
    )


async def _tables(connection: Connection) -> list[asyncpg.Record]:
    """Return tables (not partitions) with the column that says the tenant, if they have one."""
    return list(
        await connection.fetch(
            f"""
            SELECT nspname || '.' || relname AS name, relrowsecurity, relforcerowsecurity,
              attname::text AS column, attnotnull AS not_null
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
            LEFT JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
              AND (attname = 'tenant_id' OR (attname = 'tenant' AND nspname = 'historian'))
            WHERE {_OURS} AND relkind IN ('r', 'p') AND NOT relispartition
            """
        )
    )


async def _partitions(connection: Connection) -> set[str]:
    rows = await connection.fetch(
        f"""
        SELECT nspname || '.' || relname AS name
        FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE {_OURS} AND relispartition
        """
    )
    return {row["name"] for row in rows}


async def _policies(connection: Connection) -> list[asyncpg.Record]:
    return list(
        await connection.fetch(
            """
            SELECT schemaname || '.' || tablename AS name, policyname::text, permissive,
              roles::text[] AS roles, cmd, qual, with_check FROM pg_policies
            """
        )
    )


async def _grants(connection: Connection) -> dict[tuple[str, str], Privileges]:
    """Return what is granted on tables, columns and sequences, by (role, relation)."""
    grants: dict[tuple[str, str], Privileges] = {}
    for row in await connection.fetch(
        f"""
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS role,
          nspname || '.' || relname AS name, privilege_type AS privilege, NULL::text[] AS columns
        FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
        CROSS JOIN LATERAL aclexplode(relacl)
        WHERE {_OURS} AND grantee <> relowner
        UNION ALL
        SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
          nspname || '.' || relname, privilege_type, array_agg(attname::text)
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        JOIN pg_namespace n ON n.oid = relnamespace CROSS JOIN LATERAL aclexplode(attacl)
        WHERE {_OURS} AND grantee <> relowner GROUP BY 1, 2, 3
        """
    ):
        columns = None if row["columns"] is None else frozenset(row["columns"])
        found = grants.setdefault((row["role"], row["name"]), {})
        # On the whole table and on columns too: the table is what counts.
        if row["privilege"] not in found or columns is None:
            found[row["privilege"]] = columns
    return grants


async def rows_of_others(connection: Connection, role: str, mine: UUID) -> list[str]:
    """Return the tables of which a role, bound to tenant `mine`, sees rows of other tenants.

    Asked in plain SQL without any predicate, as an injected query would. Leaves the role reset.
    """
    faults = []
    for table in await _tables(connection):
        name, column = table["name"], table["column"]
        if column is None or not await connection.fetchval(
            "SELECT has_schema_privilege($1, $2, 'USAGE')"
            " AND has_any_column_privilege($1, $3, 'SELECT')",
            role,
            name.partition(".")[0],
            name,
        ):
            continue
        number = await connection.fetchval(
            "SELECT number FROM historian.tenant WHERE id = $1", mine
        )
        await connection.execute(f"SET LOCAL ROLE {role}")
        await connection.execute(f"SET LOCAL app.tenant_ids = '{{{mine}}}'")
        seen = {row[0] for row in await connection.fetch(f"SELECT DISTINCT {column} FROM {name}")}
        await connection.execute("RESET ROLE")
        if seen - {mine if column == "tenant_id" else number}:
            faults.append(f"{name}: {role} sees rows of others")
    return faults
