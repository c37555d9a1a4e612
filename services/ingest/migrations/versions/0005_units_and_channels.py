"""Units of series; attributes and replies may lie in the quarantine too."""

from libs.common.db.ddl import script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        ALTER TABLE ingest.quarantine DROP CONSTRAINT quarantine_channel_check,
          ADD CONSTRAINT quarantine_channel_check
            CHECK (channel IN ('telemetry', 'alerts', 'status', 'attributes', 'replies'));

        -- A series learns its unit with the first value that has one.
        GRANT UPDATE (unit) ON historian.series TO ingest_rw;

        -- As before, with each series' unit.
        RESET ROLE;
        CREATE OR REPLACE FUNCTION ingest.device_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, device_id uuid, tenant int, series jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT c.tenant_id, c.device_id, t.number,
            (SELECT coalesce(
               jsonb_object_agg(s.metric, jsonb_build_array(s.id, s.kind, s.unit)), '{}')
             FROM historian.series s WHERE s.tenant = t.number AND s.device_id = c.device_id)
          FROM ingest.credentials c JOIN historian.tenant t ON t.id = c.tenant_id
          WHERE c.token_hash = hash AND NOT EXISTS (
            SELECT FROM ingest.tenants x WHERE x.tenant_id = c.tenant_id AND x.status <> 'active')
        $$;
        SET LOCAL ROLE iiot_owner;
        """
    )
