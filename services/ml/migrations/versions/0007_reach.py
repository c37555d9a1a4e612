"""Who is limited to groups of devices sees those alone."""

from libs.common.db.ddl import belongs_to, in_reach, limit_to_reach

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working.

    Where devices are, the historian knows, which is read here anyway: in the transaction that moves one.
    """
    for table in ("ml.models", "ml.anomalies"):
        limit_to_reach(table, in_reach(table, "historian"))
    limit_to_reach("ml.model_state", belongs_to("ml.model_state", "model_id", "ml.models"))
