"""Tenants whose devices are shut out; and which devices may go on."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- What tenancy said last of a tenant. One that it never spoke of has no row, and is active.
        CREATE TABLE ingest.tenants (
          tenant_id uuid PRIMARY KEY,
          status text NOT NULL CHECK (status IN ('active', 'suspended', 'deleted')),
          said_at timestamptz NOT NULL
        );
        """
    )
    # Not DELETE: that a tenant is gone outlives what is erased of it, until housekeeping.
    protect("ingest.tenants", "ingest", privileges="SELECT, INSERT, UPDATE")
    script(
        """
        GRANT SELECT (status, said_at), DELETE ON ingest.tenants TO ingest_engine;
        GRANT SELECT ON ingest.tenants TO iiot_lookup;

        -- As before, but a closed tenant's devices have no valid token. (It is the look-up's own by
        -- now, which its creator may not replace.)
        RESET ROLE;
        CREATE OR REPLACE FUNCTION ingest.device_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, device_id uuid, tenant int, series jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT c.tenant_id, c.device_id, t.number,
            (SELECT coalesce(jsonb_object_agg(s.metric, jsonb_build_array(s.id, s.kind)), '{}')
             FROM historian.series s WHERE s.tenant = t.number AND s.device_id = c.device_id)
          FROM ingest.credentials c JOIN historian.tenant t ON t.id = c.tenant_id
          WHERE c.token_hash = hash AND NOT EXISTS (
            SELECT FROM ingest.tenants x WHERE x.tenant_id = c.tenant_id AND x.status <> 'active')
        $$;
        SET LOCAL ROLE iiot_owner;

        -- Which of the devices may go on: those that still have the credential they came in by
        -- (null: any), of tenants that are not closed.
        CREATE FUNCTION ingest.devices_let_in(tenants uuid[], devices uuid[], hashes bytea[])
          RETURNS SETOF uuid
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT c.device_id
          FROM unnest(tenants, devices, hashes) AS w(tenant_id, device_id, hash)
          JOIN ingest.credentials c ON c.tenant_id = w.tenant_id AND c.device_id = w.device_id
          WHERE (w.hash IS NULL OR w.hash = c.token_hash) AND NOT EXISTS (
            SELECT FROM ingest.tenants x WHERE x.tenant_id = w.tenant_id AND x.status <> 'active')
        $$;
        """
    )
    lookup_function(
        "ingest.devices_let_in(uuid[], uuid[], bytea[])",
        reads="ingest.credentials, ingest.tenants",
        granted_to="ingest_engine",
    )
