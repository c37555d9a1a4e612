"""What changes is noted for the audit trail."""

from libs.common.db.ddl import audited, create_changes

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("ml")
    audited("ml.models", resource="model", ignored=("series",))
