"""Who acts, and which groups of devices they are limited to."""

from libs.common.db.ddl import script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what triggers and policies ask of the transaction they run in."""
    script(
        """
        -- The device groups that the caller is limited to, with all below them; NULL: not limited.
        CREATE FUNCTION sec.groups() RETURNS uuid[]
          LANGUAGE sql STABLE PARALLEL SAFE AS
          $$ SELECT nullif(current_setting('app.groups', true), '')::uuid[] $$;

        -- On whose behalf the transaction works; NULL: on nobody's in particular.
        CREATE FUNCTION sec.actor() RETURNS jsonb
          LANGUAGE sql STABLE PARALLEL SAFE AS
          $$ SELECT nullif(current_setting('app.actor', true), '')::jsonb $$;
        """
    )
