"""Limits and origins that are set at run time."""

from libs.common.db.ddl import protect, script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- Those of the whole installation belong to the tenant of zeros, which nobody is in.
        CREATE TABLE gateway.rate_limit_policies (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          by_platform boolean NOT NULL,
          match jsonb NOT NULL,
          requests int CHECK (requests > 0),
          per text NOT NULL CHECK (per IN ('second', 'minute', 'hour', 'day')),
          burst int CHECK (burst > 0),
          cost int NOT NULL DEFAULT 1 CHECK (cost > 0),
          version int NOT NULL DEFAULT 1,
          updated_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id),
          CONSTRAINT rate_limit_policies_name UNIQUE (tenant_id, name)
        );

        -- Sites whose scripts may use the API in the name of the tenant's users.
        CREATE TABLE gateway.cors_origins (
          tenant_id uuid NOT NULL,
          origin text NOT NULL,
          added_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, origin)
        );
        """
    )
    protect("gateway.rate_limit_policies", "gateway")
    protect("gateway.cors_origins", "gateway")
    script(
        """
        -- Every replica knows those of all tenants.
        GRANT SELECT ON gateway.rate_limit_policies, gateway.cors_origins TO gateway_engine;
        """
    )
