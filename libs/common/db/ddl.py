"""The few sentences that every migration says: a service's schema, and a table that keeps tenants apart."""

from collections.abc import Sequence

from alembic import context, op
from sqlalchemy.util import await_only

from libs.common.db.roles import LOOKUP, OBSERVER, OWNER


def script(sql: str) -> None:
    """Run several SQL statements as one script.

    (A prepared statement, which is what the driver makes of everything else, holds only one.)
    """
    if context.is_offline_mode():
        op.execute(sql)
        return
    raw = op.get_bind().connection.driver_connection
    await_only(raw.execute(sql))  # type: ignore[union-attr]  # the driver's own connection is untyped here


def open_schema(schema: str, *roles: str) -> None:
    """Let the roles, and the observer, use the schema's objects as far as they are granted."""
    for role in (*roles, OBSERVER):
        op.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")


def protect(
    table: str, service: str, *, privileges: str = "SELECT, INSERT, UPDATE, DELETE"
) -> None:
    """Let a service see and write only the bound tenants' rows of a table that has `tenant_id`.

    Forced, so that the owner is under it too; restrictive, so that no later policy can open it.
    """
    script(
        f"""
        ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
        ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
        CREATE POLICY tenant_isolation ON {table} AS RESTRICTIVE
          USING (tenant_id = ANY((SELECT sec.tenants())::uuid[]))
          WITH CHECK (tenant_id = ANY((SELECT sec.tenants())::uuid[]));
        CREATE POLICY access ON {table} TO {service}_rw USING (true) WITH CHECK (true);
        GRANT {privileges} ON {table} TO {service}_rw;
        GRANT SELECT ON {table} TO {OBSERVER};
        """
    )


NOT_OF_A_DEVICE = "false"
"""What is not a device's is not for callers who are limited to some."""


def in_reach(table: str, places: str, column: str = "device_id") -> str:
    """Return the condition that a row's device lies in the caller's reach.

    `places` is the schema whose `device_places` knows (see `create_device_places`).
    """
    name = table.partition(".")[2]
    return f"""EXISTS (SELECT FROM {places}.device_places p
      WHERE p.tenant_id = {name}.tenant_id AND p.device_id = {name}.{column}
        AND p.groups && (SELECT sec.groups())::uuid[])"""


def belongs_to(table: str, column: str, owner: str) -> str:
    """Return the condition that a row belongs to one of another table that the caller may see."""
    name = table.partition(".")[2]
    return f"""EXISTS (SELECT FROM {owner} o
      WHERE o.tenant_id = {name}.tenant_id AND o.id = {name}.{column})"""


def limit_to_reach(table: str, lies_in_reach: str) -> None:
    """Let callers who are limited to device groups see and write those rows alone that lie there.

    Whether there is a limit at all is asked once a statement: without one, no row is looked at.
    """
    script(
        f"""
        CREATE POLICY reach ON {table} AS RESTRICTIVE
          USING ((SELECT sec.groups()) IS NULL OR {lies_in_reach})
          WITH CHECK ((SELECT sec.groups()) IS NULL OR {lies_in_reach});
        """
    )


def create_device_places(schema: str, service: str | None = None) -> None:
    """Create the record of which groups each device is in: all of them, from the root down.

    The policies of `limit_to_reach` read it. Which word was the last is told by `said`
    (`libs.common.places`): the words may come in another order, or twice.
    """
    script(
        f"""
        CREATE TABLE {schema}.device_places (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          groups uuid[] NOT NULL,
          said bigint NOT NULL DEFAULT 0,
          PRIMARY KEY (tenant_id, device_id)
        );
        """
    )
    protect(f"{schema}.device_places", service or schema)


def create_mailboxes(schema: str) -> None:
    """Create the outbox and the inbox that every service has.

    Both are the bus's own book-keeping: the outbox is written by the service and emptied by the
    relay, which crosses tenants; the inbox holds event ids alone.
    """
    script(
        f"""
        CREATE TABLE {schema}.outbox (
          seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          id uuid NOT NULL,
          tenant_id uuid,
          shard int,
          type text NOT NULL,
          source text NOT NULL,
          time timestamptz NOT NULL,
          traceparent text,
          body bytea NOT NULL
        );
        GRANT INSERT ON {schema}.outbox TO {schema}_rw;
        GRANT SELECT, DELETE ON {schema}.outbox TO {schema}_engine;
        CREATE TABLE {schema}.inbox (
          subscription text NOT NULL,
          event_id uuid NOT NULL,
          handled_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (subscription, event_id)
        );
        CREATE INDEX inbox_handled_at ON {schema}.inbox (handled_at);
        GRANT SELECT, INSERT ON {schema}.inbox TO {schema}_rw;
        GRANT SELECT, DELETE ON {schema}.inbox TO {schema}_engine;
        """
    )


def create_idempotency_keys(schema: str) -> None:
    """Create the table in which a service keeps its answers to requests that carry a key.

    An answer is sealed (see `libs.common.http.idempotency`) and is null only within the transaction
    that finds it.
    """
    script(
        f"""
        CREATE TABLE {schema}.idempotency_keys (
          tenant_id uuid NOT NULL,
          key bytea NOT NULL,
          request bytea NOT NULL,
          answer bytea,
          created_at timestamptz NOT NULL DEFAULT sec.iiot_now(),
          PRIMARY KEY (tenant_id, key)
        );
        CREATE INDEX idempotency_keys_oldest ON {schema}.idempotency_keys (created_at);
        """
    )
    protect(f"{schema}.idempotency_keys", schema)
    script(
        f"""
        GRANT SELECT (created_at), DELETE ON {schema}.idempotency_keys TO {schema}_engine;
        REVOKE SELECT ON {schema}.idempotency_keys FROM {OBSERVER};
        GRANT SELECT (tenant_id, created_at) ON {schema}.idempotency_keys TO {OBSERVER};
        """  # noqa: S608 - a schema's name, from the code
    )


def create_quotas(schema: str) -> None:
    """Create the table in which a service keeps what tenancy says its tenants may have at most.

    See `libs.common.quotas`. A tenant without rows is not limited.
    """
    script(
        f"""
        CREATE TABLE {schema}.quotas (
          tenant_id uuid NOT NULL,
          resource text NOT NULL,
          most bigint,  -- null: any number
          warn_percent int NOT NULL,
          said_at timestamptz NOT NULL,
          -- Of what is used up by the day: how much of it was handed out on which day (UTC).
          leased bigint NOT NULL DEFAULT 0,
          leased_on date,
          PRIMARY KEY (tenant_id, resource)
        );
        """
    )
    protect(f"{schema}.quotas", schema)


_CHANGES = {
    "INSERT": (
        "SELECT 'created', state, NULL::jsonb, shown"
        " FROM (SELECT to_jsonb(n.*) FROM news AS n) AS n (state)"
        " CROSS JOIN LATERAL sec.shown(state, ignored, hidden)"
    ),
    "UPDATE": (
        "SELECT CASE WHEN o IS NULL THEN 'created' WHEN n IS NULL THEN 'deleted' ELSE 'updated' END,"
        " coalesce(n, o), before, after"
        " FROM (SELECT to_jsonb(r.*) FROM olds AS r) AS olds (o)"
        " FULL JOIN (SELECT to_jsonb(r.*) FROM news AS r) AS news (n)"
        " ON sec.key_of(n, 'tenant_id'::text || keys) = sec.key_of(o, 'tenant_id'::text || keys)"
        " CROSS JOIN LATERAL sec.difference(o, n, ignored, hidden)"
        " WHERE o IS NULL OR n IS NULL OR before IS NOT NULL OR after IS NOT NULL"
    ),
    "DELETE": (
        "SELECT 'deleted', state, shown, NULL::jsonb"
        " FROM (SELECT to_jsonb(o.*) FROM olds AS o) AS o (state)"
        " CROSS JOIN LATERAL sec.shown(state, ignored, hidden)"
    ),
}
"""What became of the rows that a statement touched. Who changes a key removes a row and adds one."""


def create_changes(schema: str) -> None:
    """Create the table in which a service's transactions note what they change, and what notes it.

    It is empty but for transactions under way: each takes its notes out again, to say them as
    AuditRecorded (`libs.common.db.changes`), or is rolled back with them. So it needs no log of its
    own, and nobody to clean it. `audited` has a table's changes noted.
    """
    script(
        f"""
        CREATE UNLOGGED TABLE {schema}.changes (
          tenant_id uuid NOT NULL,
          xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
          seq bigint GENERATED ALWAYS AS IDENTITY,
          resource text NOT NULL,
          resource_id text NOT NULL,
          action text NOT NULL CHECK (action IN ('created', 'updated', 'deleted')),
          label text,
          before jsonb,
          after jsonb,
          PRIMARY KEY (tenant_id, xid, seq)
        );
        """
    )
    protect(f"{schema}.changes", schema, privileges="SELECT, INSERT, DELETE")
    cases = "\n".join(
        f"""
          {"IF" if operation == "INSERT" else "ELSIF"} TG_OP = '{operation}' THEN
            INSERT INTO {schema}.changes
              (tenant_id, resource, resource_id, action, label, before, after)
            SELECT (state ->> 'tenant_id')::uuid, resource, sec.key_of(state, keys), action,
              state ->> label, before, after
            FROM ({changes}) AS changes (action, state, before, after);"""  # noqa: S608 - a schema's name, from the code
        for operation, changes in _CHANGES.items()
    )
    script(
        f"""
        -- Runs once a statement, as its caller. Bytes are hidden, also those of columns yet to come.
        CREATE FUNCTION {schema}.note_changes() RETURNS trigger LANGUAGE plpgsql AS $$
        #variable_conflict use_column
        DECLARE
          resource CONSTANT text := TG_ARGV[0];
          keys CONSTANT text[] := TG_ARGV[1];
          label CONSTANT text := TG_ARGV[2];
          ignored CONSTANT text[] := TG_ARGV[3];
          hidden CONSTANT text[] := TG_ARGV[4]::text[] || ARRAY(
            SELECT attname::text FROM pg_attribute WHERE attrelid = TG_RELID AND attnum > 0
              AND atttypid IN ('bytea'::regtype, 'bytea[]'::regtype) AND NOT attisdropped);
        BEGIN
          {cases}
          END IF;
          RETURN NULL;
        END $$;
        REVOKE ALL ON FUNCTION {schema}.note_changes FROM PUBLIC;
        """  # noqa: S608 - a schema's name, from the code
    )


def audited(
    table: str,
    *,
    resource: str,
    key: Sequence[str] = ("id",),
    label: str = "name",
    secret: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> None:
    """Have it noted what somebody creates, changes or deletes in a table with `tenant_id`.

    `resource` is what the trail calls a row; `key` the primary key without the tenant; `label` the
    column that people know a row by, if it has one. Of `secret` columns, and of all bytes, it is
    only noted that they were set, changed or removed; of `ignored` ones nothing.
    """
    schema = table.partition(".")[0]
    unchanging = ("tenant_id", *key, "version", "created_at", "updated_at", *ignored)
    arguments = ", ".join(
        f"'{argument}'"
        for argument in (
            resource,
            f"{{{','.join(key)}}}",
            label,
            f"{{{','.join(unchanging)}}}",
            f"{{{','.join(secret)}}}",
        )
    )
    for operation, transition in (
        ("INSERT", "NEW TABLE AS news"),
        ("UPDATE", "OLD TABLE AS olds NEW TABLE AS news"),
        ("DELETE", "OLD TABLE AS olds"),
    ):
        script(
            f"""
            CREATE TRIGGER audited_{operation.lower()} AFTER {operation} ON {table}
              REFERENCING {transition} FOR EACH STATEMENT WHEN (sec.actor() IS NOT NULL)
              EXECUTE FUNCTION {schema}.note_changes({arguments});
            """
        )


def lookup_function(function: str, *, reads: str, granted_to: str) -> None:
    """Let a SECURITY DEFINER function look through row-level security, for a tenant not yet known.

    (Its creator, the schemas' owner, is under row-level security itself and would see nothing.)
    `function` with its argument types, `reads` the tables it needs, `granted_to` the roles that
    may call it. The function must set its search_path.
    """
    schema = function.partition(".")[0]
    script(
        f"""
        REVOKE ALL ON FUNCTION {function} FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION {function} TO {granted_to};
        GRANT USAGE ON SCHEMA {schema} TO {LOOKUP};
        GRANT SELECT ON {reads} TO {LOOKUP};
        RESET ROLE;
        ALTER FUNCTION {function} OWNER TO {LOOKUP};
        SET LOCAL ROLE {OWNER};
        """
    )
