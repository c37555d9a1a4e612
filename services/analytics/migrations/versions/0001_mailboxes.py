"""The schema of analytics, with its mailboxes; what it reads is the historian's."""

from libs.common.db.ddl import create_mailboxes, open_schema

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the schema of analytics."""
    create_mailboxes("analytics")
    open_schema("analytics", "analytics_rw", "analytics_engine")
