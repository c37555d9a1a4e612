"""What a plan allows."""

from libs.common.db.ddl import create_quotas

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    create_quotas("rules")
