"""Memberships that are limited to groups of devices."""

from libs.common.db.ddl import lookup_function, script

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- The device groups that the member is limited to, with all below them; NULL: all devices.
        ALTER TABLE tenancy.memberships ADD COLUMN device_groups uuid[];

        CREATE FUNCTION tenancy.reach_of_user(wanted uuid)
          RETURNS TABLE (tenant_id uuid, device_groups uuid[])
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT m.tenant_id, m.device_groups FROM tenancy.memberships AS m
          WHERE m.user_id = wanted AND m.device_groups IS NOT NULL
        $$;
        """
    )
    lookup_function(
        "tenancy.reach_of_user(uuid)", reads="tenancy.memberships", granted_to="tenancy_engine"
    )
