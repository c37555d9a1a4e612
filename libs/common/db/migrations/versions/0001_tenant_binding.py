"""The functions that row-level security and the timers stand on."""

from libs.common.db.ddl import script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create `sec`: which tenants are bound, and what time it is."""
    script(
        """
        -- The tenants bound to this transaction. After a SET LOCAL ends the setting is '', not NULL.
        CREATE FUNCTION sec.tenants() RETURNS uuid[]
          LANGUAGE sql STABLE PARALLEL SAFE AS
          $$ SELECT coalesce(nullif(current_setting('app.tenant_ids', true), '')::uuid[], '{}') $$;

        -- One row: by how much the platform's time is moved. Zero outside of tests.
        CREATE TABLE sec.clock (
          one boolean PRIMARY KEY DEFAULT true CHECK (one),
          shift interval NOT NULL DEFAULT '0'
        );
        INSERT INTO sec.clock DEFAULT VALUES;

        -- The time that timers go by. Of the statement, not of the transaction.
        CREATE FUNCTION sec.iiot_now() RETURNS timestamptz
          LANGUAGE sql STABLE PARALLEL SAFE AS
          $$ SELECT statement_timestamp() + shift FROM sec.clock $$;

        GRANT USAGE ON SCHEMA sec TO PUBLIC;
        GRANT SELECT ON sec.clock TO PUBLIC;
        """
    )
