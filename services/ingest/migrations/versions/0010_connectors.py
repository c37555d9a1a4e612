"""Connections out: other brokers, OPC UA servers, Modbus devices; whose a device at a broker is."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- `secrets` are sealed one by one; `memory` is what the connection itself has to remember.
        -- A process runs it as long as its lease lasts, by PostgreSQL's clock.
        CREATE TABLE ingest.connectors (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          kind text NOT NULL,
          is_enabled boolean NOT NULL,
          settings jsonb NOT NULL,
          secrets jsonb NOT NULL,
          memory jsonb NOT NULL DEFAULT '{}',
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL,
          runner_id uuid,
          lease_until timestamptz,
          state text,
          reason text NOT NULL DEFAULT '',
          state_at timestamptz,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );
        """
    )
    protect("ingest.connectors", "ingest")
    script(
        """
        REVOKE SELECT ON ingest.connectors FROM iiot_observer;
        GRANT SELECT (tenant_id, id, kind, is_enabled, version, runner_id, lease_until, state,
                      state_at)
          ON ingest.connectors TO iiot_observer;
        -- Which process runs which connection is decided over all tenants.
        GRANT SELECT (tenant_id, id, is_enabled, version, runner_id, lease_until),
              UPDATE (runner_id, lease_until)
          ON ingest.connectors TO ingest_engine;

        -- A device that another broker has let in by its token, and whose messages bear its id.
        CREATE FUNCTION ingest.tenant_of_device(device uuid) RETURNS uuid
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT d.tenant_id FROM ingest.devices d WHERE d.id = device
        $$;
        """
    )
    lookup_function(
        "ingest.tenant_of_device(uuid)", reads="ingest.devices", granted_to="ingest_engine"
    )
