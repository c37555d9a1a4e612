"""The end of a tenant: its series go at once, its points when they may, its number last."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        ALTER TABLE historian.tenant ADD COLUMN gone_at timestamptz;

        -- Forgets the series of the bound tenants, who are no more: their points have no name any
        -- more, and nobody can find them. The numbers stay, by which the points are erased.
        CREATE FUNCTION historian.close_tenants() RETURNS void
          LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          DELETE FROM historian.series WHERE tenant = ANY(historian.tenant_numbers());
          UPDATE historian.tenant SET gone_at = coalesce(gone_at, sec.iiot_now())
          WHERE id = ANY(sec.tenants());
        $$;

        -- Forgets the numbers of the tenants that are gone since before a moment and have no points
        -- left. (Partitions are asked by name, past the policies, which show nothing to nobody.)
        CREATE FUNCTION historian.forget_tenants(gone_before timestamptz) RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE gone int; part name; has_points boolean; forgotten int := 0;
        BEGIN
          FOR gone IN SELECT number FROM historian.tenant WHERE gone_at < gone_before LOOP
            FOR part IN SELECT * FROM historian.parts_before('9999-12-31') LOOP
              EXECUTE format('SELECT EXISTS (SELECT FROM historian.%I WHERE tenant = $1)', part)
                INTO has_points USING gone;
              EXIT WHEN has_points;
            END LOOP;
            IF NOT has_points THEN
              DELETE FROM historian.tenant WHERE number = gone;
              forgotten := forgotten + 1;
            END IF;
          END LOOP;
          RETURN forgotten;
        END $$;

        REVOKE ALL ON FUNCTION historian.close_tenants, historian.forget_tenants FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION historian.close_tenants TO retention_rw;
        GRANT EXECUTE ON FUNCTION historian.forget_tenants TO retention_engine;
        """
    )
