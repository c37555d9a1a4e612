"""Who is limited to groups of devices sees those alone."""

from libs.common.db.ddl import in_reach, limit_to_reach

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working.

    Where devices are, the historian knows, which is read here anyway: in the transaction that moves one.
    """
    for table in ("rules.rules", "rules.rule_state"):
        limit_to_reach(table, in_reach(table, "historian"))
