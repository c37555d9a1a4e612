"""What changes is noted for the audit trail."""

from libs.common.db.ddl import audited, create_changes

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("gateway")
    audited("gateway.rate_limit_policies", resource="rate_limit_policy")
    audited("gateway.cors_origins", resource="cors_origin", key=("origin",), ignored=("added_at",))
