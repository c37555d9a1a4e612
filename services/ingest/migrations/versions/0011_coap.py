"""What CoAP must remember over a restart."""

from libs.common.db.ddl import protect, script

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- What a tenant lets its devices do. One without a row lets them do nothing of it.
        CREATE TABLE ingest.policies (
          tenant_id uuid PRIMARY KEY,
          plain_coap boolean NOT NULL,
          changed_at timestamptz NOT NULL
        );

        -- Up to which sequence number those of an OSCORE secret were given out, the secret known by its
        -- identity: none may be used twice, in whatever process.
        CREATE TABLE ingest.oscore_sequences (
          tenant_id uuid NOT NULL,
          identity text NOT NULL,
          device_id uuid NOT NULL,
          used bigint NOT NULL,
          PRIMARY KEY (tenant_id, identity),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );
        -- For the devices that are erased.
        CREATE INDEX oscore_sequences_device ON ingest.oscore_sequences (tenant_id, device_id);
        """
    )
    protect("ingest.policies", "ingest")
    protect("ingest.oscore_sequences", "ingest")
