"""Rules, how far each has got with its device, and who evaluates which shard."""

from libs.common.db.ddl import create_mailboxes, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the schema of rules."""
    script(
        """
        CREATE TABLE rules.rules (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          type text NOT NULL,
          device_id uuid NOT NULL,
          metric text NOT NULL,
          condition jsonb NOT NULL,
          hold interval NOT NULL DEFAULT '0',
          severity text NOT NULL CHECK (severity IN ('info', 'low', 'medium', 'high', 'critical')),
          enabled boolean NOT NULL DEFAULT true,
          version int NOT NULL DEFAULT 1,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX rules_newest ON rules.rules (tenant_id, created_at, id);
        CREATE INDEX rules_device ON rules.rules (tenant_id, device_id, created_at, id);

        -- What must survive the worker. `since`: the condition has held since that point;
        -- `fired_at`: the point that fired; `last_ts`: up to where points have been looked at.
        CREATE TABLE rules.rule_state (
          tenant_id uuid NOT NULL,
          rule_id uuid NOT NULL,
          device_id uuid NOT NULL,
          since timestamptz,
          fired_at timestamptz,
          last_ts timestamptz,
          PRIMARY KEY (tenant_id, rule_id, device_id),
          FOREIGN KEY (tenant_id, rule_id) REFERENCES rules.rules ON DELETE CASCADE
        ) WITH (fillfactor = 70);

        -- Which worker evaluates a shard. A lock on the row fences off one that has lost it.
        CREATE TABLE rules.shards (
          shard int PRIMARY KEY,
          owner uuid
        );
        """
    )
    protect("rules.rules", "rules")
    protect("rules.rule_state", "rules")
    create_mailboxes("rules")
    open_schema("rules", "rules_rw", "rules_engine")
    script(
        """
        -- The definitions, for the workers: points of all tenants come in one stream.
        GRANT SELECT (tenant_id, id, name, type, device_id, metric, condition, hold, severity,
                      enabled, version, created_at, updated_at) ON rules.rules TO rules_engine;
        GRANT SELECT, INSERT, UPDATE ON rules.shards TO rules_engine;
        GRANT SELECT, UPDATE ON rules.shards TO rules_rw;
        GRANT SELECT ON rules.shards TO iiot_observer;
        """
    )
