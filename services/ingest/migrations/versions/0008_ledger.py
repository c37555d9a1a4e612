"""What became of every point, by device and hour."""

from libs.common.db.ddl import protect, script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- What the writer did in one transaction, and wrote down in it: of series how many points
        -- were stored (empty: one each time it is named), and how many were there already (empty:
        -- none was), as columns of little-endian int32; of each device what went to quarantine and
        -- what it said it had lost. Added to the ledger soon, and gone.
        CREATE TABLE ingest.ledger_log (
          id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          hour timestamptz NOT NULL,
          series bytea NOT NULL,
          stored bytea NOT NULL,
          duplicates bytea NOT NULL,
          tenants uuid[] NOT NULL,
          devices uuid[] NOT NULL,
          quarantined int[] NOT NULL,
          gaps int[] NOT NULL,
          missing bigint[] NOT NULL
        );
        -- They are read once and soon: packing them costs more than it saves.
        ALTER TABLE ingest.ledger_log ALTER COLUMN series SET STORAGE EXTERNAL,
          ALTER COLUMN stored SET STORAGE EXTERNAL, ALTER COLUMN duplicates SET STORAGE EXTERNAL;
        GRANT INSERT ON ingest.ledger_log TO historian_writer;
        GRANT SELECT, DELETE ON ingest.ledger_log TO ingest_engine;

        -- `hour` is that of receipt, UTC.
        CREATE TABLE ingest.ledger (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          hour timestamptz NOT NULL,
          accepted bigint NOT NULL,
          duplicates bigint NOT NULL,
          quarantined bigint NOT NULL,
          gaps bigint NOT NULL,
          missing bigint NOT NULL,
          PRIMARY KEY (tenant_id, device_id, hour)
        );
        CREATE INDEX ledger_of_tenant ON ingest.ledger (tenant_id, hour);
        CREATE INDEX ledger_oldest ON ingest.ledger USING brin (hour);
        """
    )
    protect("ingest.ledger", "ingest", privileges="SELECT, DELETE")
    script(
        """
        GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.ledger TO ingest_engine;
        GRANT SELECT (tenant_id) ON ingest.tenants TO ingest_engine;
        -- So that the writer can tell which of the points that it just wrote are new.
        GRANT SELECT (series) ON historian.points, historian.texts TO historian_writer;

        -- It is the look-up's own, which its creator may not grant.
        RESET ROLE;
        GRANT EXECUTE ON FUNCTION historian.describe_series(int[]) TO ingest_engine;
        SET LOCAL ROLE iiot_owner;
        """
    )
