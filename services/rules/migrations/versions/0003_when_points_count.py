"""When the newest point that was looked at counted: a device's clock may run ahead."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a point's own time and the time at which it counts be two."""
    script(
        """
        -- The point's own time, `last_ts`, or that of its receipt if that was before; NULL: the same.
        ALTER TABLE rules.rule_state ADD COLUMN last_at timestamptz;
        """
    )
