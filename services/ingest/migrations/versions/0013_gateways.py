"""Devices that speak for others, and for which."""

from libs.common.db.ddl import protect, script

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- Devices that may speak for those behind them. `registers` is the type of the devices that such
        -- a one may register by naming them, as long as fewer than `most` are behind it.
        CREATE TABLE ingest.gateways (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          registers text,
          most integer NOT NULL,
          changed_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );

        -- Who is behind which gateway, by what the gateway calls it. Never behind two.
        CREATE TABLE ingest.gateway_devices (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          gateway_id uuid NOT NULL,
          name text NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          UNIQUE (tenant_id, gateway_id, name),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE,
          FOREIGN KEY (tenant_id, gateway_id) REFERENCES ingest.gateways (tenant_id, device_id)
            ON DELETE CASCADE
        );
        """
    )
    protect("ingest.gateways", "ingest")
    protect("ingest.gateway_devices", "ingest")
