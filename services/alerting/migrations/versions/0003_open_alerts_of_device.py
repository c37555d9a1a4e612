"""The open alerts of a device are found without its past."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A device that raises alarms without end leaves a long past, and each next one counts what is open."""
    script(
        """
        CREATE INDEX alerts_open_of_device ON alerting.alerts (tenant_id, device_id)
          WHERE state <> 'resolved';
        """
    )
