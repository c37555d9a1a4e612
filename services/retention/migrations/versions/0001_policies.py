"""For how long each tenant wants what kept."""

from libs.common.db.ddl import create_mailboxes, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the schema of retention."""
    script(
        """
        CREATE TABLE retention.policies (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          data_type text NOT NULL,
          keep_days int NOT NULL CHECK (keep_days >= 1),
          version int NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, data_type)
        );
        """
    )
    protect("retention.policies", "retention")
    create_mailboxes("retention")
    open_schema("retention", "retention_rw", "retention_engine")
    script(
        """
        -- A day is dropped when no tenant wants it any more.
        GRANT SELECT (tenant_id, id, data_type, keep_days) ON retention.policies TO retention_engine;
        -- What is erased and the word of it commit together, be the outbox a table or the log.
        GRANT INSERT ON retention.outbox TO retention_engine;
        GRANT USAGE ON SCHEMA bus TO retention_engine;
        GRANT EXECUTE ON FUNCTION bus.append TO retention_engine;
        """
    )
