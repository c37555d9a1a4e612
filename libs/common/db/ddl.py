"""The few sentences that every migration says: a service's schema, and a table that keeps tenants apart."""

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
