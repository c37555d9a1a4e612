"""Units of series; attributes and replies may lie in the quarantine too."""

from libs.common.db.ddl import script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        ALTER TABLE ingest.quarantine DROP CONSTRAINT quarantine_channel_check,
          ADD CONSTRAINT quarantine_channel_check
            CHECK (channel IN ('telemetry', 'alerts', 'status', 'attributes', 'replies'));

        -- A series learns its unit with the first value that has one.
        GRANT UPDATE (unit) ON historian.series TO ingest_rw;
        """
    )
