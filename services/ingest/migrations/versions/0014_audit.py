"""What changes is noted for the audit trail."""

from libs.common.db.ddl import audited, create_changes

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Have it noted what somebody changes."""
    create_changes("ingest")
    audited(
        "ingest.devices",
        resource="device",
        # How it is doing, which it says itself.
        ignored=("status", "status_reason", "status_at", "endpoint_id", "connected_at"),
    )
    audited("ingest.device_profiles", resource="device_profile")
    audited("ingest.device_groups", resource="device_group")
    audited(
        "ingest.device_attributes",
        resource="device_attributes",
        key=("device_id", "scope"),
        label="",
    )
    audited(
        "ingest.credentials", resource="device_credential", key=("device_id", "id"), label="kind"
    )
    audited("ingest.claims", resource="device_claim", key=("device_id",), label="")
    audited("ingest.gateways", resource="device_gateway", key=("device_id",), label="")
    audited("ingest.gateway_devices", resource="gateway_device", key=("device_id",))
    audited("ingest.provisioning_keys", resource="provisioning_key", ignored=("devices",))
    audited(
        "ingest.connectors",
        resource="connector",
        secret=("secrets",),
        # What it remembers and how it is doing, which its runner says.
        ignored=("memory", "runner_id", "lease_until", "state", "reason", "state_at"),
    )
    audited(
        "ingest.commands",
        resource="command",
        # A command may carry what a device is to keep to itself.
        secret=("params", "result"),
        ignored=("seq", "sent_at", "tried_at", "due_at", "claims", "attempts"),
    )
    audited(
        "ingest.policies",
        resource="device_policy",
        key=("tenant_id",),
        label="",
        ignored=("changed_at",),
    )
