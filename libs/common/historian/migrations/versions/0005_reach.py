"""Where devices are: who is limited to groups of devices reads the points of those alone."""

from libs.common.db.ddl import create_device_places, limit_to_reach, lookup_function, script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

READERS = "analytics_rw, ml_rw, rules_rw, retention_rw, ingest_rw"


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working.

    Ingest keeps the places, in the transaction that moves a device (its migration 0015).
    """
    create_device_places("historian", "ingest")
    script(
        f"""
        CREATE POLICY reading ON historian.device_places FOR SELECT TO {READERS} USING (true);
        GRANT SELECT ON historian.device_places TO {READERS};

        -- Where devices are, for those who pass on what all tenants' devices say.
        CREATE FUNCTION historian.places_of(of_tenant uuid, devices uuid[])
          RETURNS TABLE (device_id uuid, groups uuid[])
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT p.device_id, p.groups FROM historian.device_places p
          WHERE p.tenant_id = of_tenant AND p.device_id = ANY(devices)
        $$;

        -- As before, and where its devices were is forgotten too.
        CREATE OR REPLACE FUNCTION historian.close_tenants() RETURNS void
          LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          DELETE FROM historian.series WHERE tenant = ANY(historian.tenant_numbers());
          DELETE FROM historian.device_places WHERE tenant_id = ANY(sec.tenants());
          UPDATE historian.tenant SET gone_at = coalesce(gone_at, sec.iiot_now())
          WHERE id = ANY(sec.tenants());
        $$;
        CREATE POLICY by_function ON historian.device_places TO iiot_owner
          USING (true) WITH CHECK (true);
        """  # noqa: S608 - roles, from the constant above
    )
    lookup_function(
        "historian.places_of(uuid, uuid[])",
        reads="historian.device_places",
        granted_to="gateway_engine",
    )
    limit_to_reach(
        "historian.series",
        """EXISTS (SELECT FROM historian.device_places p
             WHERE p.device_id = series.device_id
               AND p.groups && (SELECT sec.groups())::uuid[])""",
    )
    for table in ("points", "texts"):
        # The series are under their own policy.
        limit_to_reach(
            f"historian.{table}",
            f"""EXISTS (SELECT FROM historian.series s
                 WHERE s.tenant = {table}.tenant AND s.id = {table}.series)""",
        )
