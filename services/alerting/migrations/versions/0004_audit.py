"""What changes is noted for the audit trail."""

from libs.common.db.ddl import audited, create_changes

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("alerting")
    audited(
        "alerting.alerts",
        resource="alert",
        label="title",
        ignored=("count", "last_seen_at", "value"),
    )
    audited("alerting.alert_notes", resource="alert_note", label="", ignored=("seq",))
    audited(
        "alerting.channels",
        resource="notification_channel",
        # Who knows a webhook's URL may write there.
        secret=("config", "secret"),
    )
