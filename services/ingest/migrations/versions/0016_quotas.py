"""What plans allow, and what tenants use of the historian."""

from libs.common.db.ddl import create_quotas, protect, script

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    create_quotas("ingest")
    script(
        """
        -- By day (UTC): points stored, added up as the ledger is; and how much is stored in all.
        -- `told` is what was said of it last.
        CREATE TABLE ingest.usage (
          tenant_id uuid NOT NULL,
          resource text NOT NULL,
          day date NOT NULL,
          amount bigint NOT NULL,
          told bigint,
          PRIMARY KEY (tenant_id, resource, day)
        );
        CREATE INDEX usage_untold ON ingest.usage (day) WHERE told IS DISTINCT FROM amount;
        """
    )
    protect("ingest.usage", "ingest")
    script("GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.usage TO ingest_engine;")
