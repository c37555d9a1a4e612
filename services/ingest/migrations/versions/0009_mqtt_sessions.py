"""MQTT sessions that outlive their connection and their process."""

from libs.common.db.ddl import protect, script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- `holder` is the process whose connection the session belongs to; null while the device is
        -- away, and then the session ends at `expires_at`.
        CREATE TABLE ingest.mqtt_sessions (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          holder uuid,
          taken_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL,
          state bytea NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );
        """
    )
    protect("ingest.mqtt_sessions", "ingest")
    script(
        """
        GRANT SELECT (tenant_id, device_id, expires_at), DELETE ON ingest.mqtt_sessions
          TO ingest_engine;

        -- Which commands a device has not answered is the tenant's business.
        REVOKE SELECT ON ingest.mqtt_sessions FROM iiot_observer;
        GRANT SELECT (tenant_id, device_id, holder, taken_at, expires_at) ON ingest.mqtt_sessions
          TO iiot_observer;
        """
    )
