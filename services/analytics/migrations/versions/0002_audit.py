"""What changes is noted for the audit trail."""

from libs.common.db.ddl import create_changes

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("analytics")
