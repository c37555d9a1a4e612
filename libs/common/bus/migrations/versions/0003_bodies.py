"""What events say is nobody's business but the services'."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let the operators see which messages failed, and not what they say; why is in the log."""
    script(
        """
        REVOKE SELECT ON bus.retries, bus.dead_letters FROM iiot_observer;
        GRANT SELECT (subscriber, id, attempts, due_at) ON bus.retries TO iiot_observer;
        GRANT SELECT (subscriber, id, type, tenant_id, died_at) ON bus.dead_letters TO iiot_observer;
        """
    )
