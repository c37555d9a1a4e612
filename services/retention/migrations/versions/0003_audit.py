"""What changes is noted for the audit trail."""

from libs.common.db.ddl import audited, create_changes

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("retention")
    audited("retention.policies", resource="retention_policy", label="data_type")
