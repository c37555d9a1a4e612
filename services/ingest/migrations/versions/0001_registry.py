"""Devices, their credentials, and the quarantine."""

from libs.common.db.ddl import create_mailboxes, lookup_function, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create ingest's schema."""
    script(
        """
        CREATE TABLE ingest.devices (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          type text NOT NULL,
          description text NOT NULL DEFAULT '',
          status text NOT NULL DEFAULT 'unknown' CHECK (status IN ('unknown', 'online', 'offline')),
          status_reason text NOT NULL DEFAULT '',
          status_at timestamptz,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );
        CREATE INDEX devices_newest ON ingest.devices (tenant_id, created_at, id);

        CREATE TABLE ingest.credentials (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          token_hash bytea NOT NULL,
          created_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );
        -- Tokens are random: that two are equal does not happen, so the index tells nobody anything.
        CREATE UNIQUE INDEX credentials_token ON ingest.credentials (token_hash);

        CREATE TABLE ingest.quarantine (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          device_id uuid NOT NULL,
          received_at timestamptz NOT NULL,
          reason text NOT NULL,
          detail text NOT NULL,
          metric text,
          payload bytea NOT NULL,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX quarantine_newest ON ingest.quarantine (tenant_id, received_at, id);

        -- The device that a token belongs to, with the numbers its points are stored under.
        CREATE FUNCTION ingest.device_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, device_id uuid, tenant int, series jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT c.tenant_id, c.device_id, t.number,
            (SELECT coalesce(jsonb_object_agg(s.metric, jsonb_build_array(s.id, s.kind)), '{}')
             FROM historian.series s WHERE s.tenant = t.number AND s.device_id = c.device_id)
          FROM ingest.credentials c JOIN historian.tenant t ON t.id = c.tenant_id
          WHERE c.token_hash = hash
        $$;
        """
    )
    protect("ingest.devices", "ingest")
    protect("ingest.credentials", "ingest")
    protect("ingest.quarantine", "ingest", privileges="SELECT, DELETE")
    create_mailboxes("ingest")
    open_schema("ingest", "ingest_rw", "ingest_engine", "historian_writer")
    script(
        """
        REVOKE SELECT ON ingest.credentials FROM iiot_observer;
        GRANT USAGE ON SCHEMA historian TO iiot_lookup;
        GRANT INSERT ON ingest.quarantine TO historian_writer;
        GRANT SELECT, INSERT ON ingest.inbox TO historian_writer;
        """
    )
    lookup_function(
        "ingest.device_of_token(bytea)",
        reads="ingest.credentials, historian.tenant, historian.series",
        granted_to="ingest_engine",
    )
