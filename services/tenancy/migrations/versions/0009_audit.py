"""The audit trail."""

from libs.common.db.ddl import audited, create_changes, protect, script

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the trail, which tenancy can only add to, and have it noted what somebody changes."""
    script(
        """
        -- Where a tenant's trail ends, and where what is kept of it begins: `first_prev_hash` is the
        -- hash that the entry `first_seq` follows.
        CREATE TABLE tenancy.audit_heads (
          tenant_id uuid PRIMARY KEY REFERENCES tenancy.tenants ON DELETE CASCADE,
          seq bigint NOT NULL,
          hash bytea NOT NULL,
          first_seq bigint NOT NULL,
          first_prev_hash bytea NOT NULL
        );

        CREATE TABLE tenancy.audit_log (
          tenant_id uuid NOT NULL REFERENCES tenancy.audit_heads ON DELETE CASCADE,
          seq bigint NOT NULL,
          at timestamptz NOT NULL,
          service text NOT NULL,
          action text NOT NULL,
          outcome text NOT NULL CHECK (outcome IN ('ok', 'denied', 'failed')),
          resource text NOT NULL,
          resource_id text,
          label text,
          actor_kind text NOT NULL,
          actor_id uuid,
          session_id uuid,
          address text,
          user_agent text,
          request_id text,
          before jsonb,
          after jsonb,
          detail jsonb,
          prev_hash bytea NOT NULL,
          hash bytea NOT NULL,
          PRIMARY KEY (tenant_id, seq)
        );
        CREATE INDEX audit_log_actor ON tenancy.audit_log (tenant_id, actor_id, seq);
        CREATE INDEX audit_log_resource
          ON tenancy.audit_log (tenant_id, resource, resource_id, seq);
        CREATE INDEX audit_log_time ON tenancy.audit_log (tenant_id, at);
        """
    )
    # Neither updated nor deleted: it goes with its tenant, by the foreign keys.
    protect("tenancy.audit_log", "tenancy", privileges="SELECT, INSERT")
    protect("tenancy.audit_heads", "tenancy", privileges="SELECT, INSERT")
    script(
        """
        GRANT UPDATE (seq, hash) ON tenancy.audit_heads TO tenancy_rw;
        -- What people did is for who may read the trail, not for those who watch the machines.
        REVOKE SELECT ON tenancy.audit_log, tenancy.audit_heads FROM iiot_observer;
        GRANT SELECT (tenant_id, seq, at, service, action, outcome) ON tenancy.audit_log
          TO iiot_observer;
        GRANT SELECT (tenant_id, seq, first_seq) ON tenancy.audit_heads TO iiot_observer;
        """
    )
    create_changes("tenancy")
    audited("tenancy.tenants", resource="tenant", key=("tenant_id",))
    audited("tenancy.memberships", resource="user", key=("user_id",))
    audited("tenancy.invitations", resource="invitation", key=("user_id",), label="")
    audited(
        "tenancy.registration_policies",
        resource="registration_policy",
        key=("tenant_id",),
        label="",
    )
    audited("tenancy.login_policies", resource="login_policy", key=("tenant_id",), label="")
    audited("tenancy.roles", resource="role", key=("name",))
    audited("tenancy.api_keys", resource="api_key")
    audited("tenancy.brandings", resource="branding", key=("tenant_id",), label="product_name")
