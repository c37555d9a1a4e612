"""Tenants that were removed, until that was said for the last time."""

from libs.common.db.ddl import protect, script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of removed tenants."""
    script(
        """
        CREATE TABLE tenancy.removed_tenants (
          tenant_id uuid PRIMARY KEY,
          slug text NOT NULL,
          removed_at timestamptz NOT NULL
        );
        """
    )
    protect("tenancy.removed_tenants", "tenancy", privileges="SELECT, INSERT, DELETE")
    script("GRANT SELECT (tenant_id, removed_at) ON tenancy.removed_tenants TO tenancy_engine;")
