"""Who is limited to groups of devices sees those alone."""

from libs.common.db.ddl import belongs_to, create_device_places, in_reach, limit_to_reach

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working.

    Alerts of no device are not for those who are limited to some.
    """
    create_device_places("alerting")
    limit_to_reach("alerting.alerts", in_reach("alerting.alerts", "alerting"))
    for table in ("alert_history", "alert_notes", "notifications", "firings"):
        name = f"alerting.{table}"
        limit_to_reach(name, belongs_to(name, "alert_id", "alerting.alerts"))
    limit_to_reach(
        "alerting.names", f"(kind = 'user' OR {in_reach('alerting.names', 'alerting', 'id')})"
    )
