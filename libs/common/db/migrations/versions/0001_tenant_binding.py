"""The functions that row-level security and the timers stand on."""

from libs.common.db.ddl import script
from libs.common.db.roles import LOGIN_ROLES, OWNER

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
    # Whoever may make temporary objects may give a type a name that a SECURITY DEFINER function
    # uses, and so run code as its owner: pg_temp is searched first, whatever the search_path says.
    script(
        f"""
        RESET ROLE;
        DO $$ BEGIN
          EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
          EXECUTE format('GRANT CONNECT ON DATABASE %I TO {", ".join(LOGIN_ROLES)}', current_database());
        END $$;
        SET LOCAL ROLE {OWNER};
        """
    )
