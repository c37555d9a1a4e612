"""How much of the store a tenant takes."""

from libs.common.db.ddl import lookup_function, script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- How many bytes each tenant stores: 94 a point, its key with it, as was measured; of a
        -- text its length too.
        CREATE FUNCTION historian.storage() RETURNS TABLE (tenant_id uuid, points bigint, bytes bigint)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.id, sum(c.points)::bigint, sum(c.bytes)::bigint FROM (
            SELECT p.tenant, count(*) AS points, count(*) * 94 AS bytes
            FROM historian.points AS p GROUP BY p.tenant
            UNION ALL
            SELECT x.tenant, count(*), count(*) * 94 + sum(octet_length(x.value))
            FROM historian.texts AS x GROUP BY x.tenant
          ) AS c JOIN historian.tenant AS t ON t.number = c.tenant GROUP BY t.id
        $$;
        """
    )
    lookup_function(
        "historian.storage()",
        reads="historian.points, historian.texts, historian.tenant",
        granted_to="ingest_engine",
    )
