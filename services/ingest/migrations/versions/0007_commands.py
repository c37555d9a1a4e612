"""Commands to devices."""

from libs.common.db.ddl import protect, script

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- The device is no foreign key: what was sent to one that is removed stays to be seen.
        CREATE TABLE ingest.commands (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          device_id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          name text NOT NULL,
          params jsonb NOT NULL,
          two_way boolean NOT NULL,
          timeout interval NOT NULL,
          status text NOT NULL CHECK
            (status IN ('queued', 'sent', 'acknowledged', 'succeeded', 'failed', 'expired')),
          created_by text NOT NULL,
          created_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL,
          sent_at timestamptz,
          tried_at timestamptz,
          acknowledged_at timestamptz,
          completed_at timestamptz,
          due_at timestamptz,
          claims int NOT NULL DEFAULT 0,
          attempts int NOT NULL DEFAULT 0,
          result jsonb,
          error text,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX commands_newest ON ingest.commands (tenant_id, device_id, created_at, id);
        CREATE INDEX commands_open ON ingest.commands (tenant_id, device_id, seq)
          WHERE completed_at IS NULL;
        -- When something must become of an open command: it expires, or its answer is overdue.
        CREATE INDEX commands_due ON ingest.commands (due_at) WHERE due_at IS NOT NULL;
        CREATE INDEX commands_over ON ingest.commands USING brin (completed_at);

        -- What became of a command, step by step: written once, and never changed.
        CREATE TABLE ingest.command_steps (
          tenant_id uuid NOT NULL,
          command_id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          at timestamptz NOT NULL,
          status text NOT NULL,
          detail text NOT NULL DEFAULT '',
          PRIMARY KEY (tenant_id, command_id, seq),
          FOREIGN KEY (tenant_id, command_id) REFERENCES ingest.commands ON DELETE CASCADE
        );
        """
    )
    protect("ingest.commands", "ingest")
    protect("ingest.command_steps", "ingest", privileges="SELECT, INSERT")
    script(
        """
        GRANT SELECT (tenant_id, id, device_id, status, tried_at, due_at, expires_at, completed_at,
          attempts), DELETE ON ingest.commands TO ingest_engine;

        -- What is said to a plant, and what it answers, is the tenant's business.
        REVOKE SELECT ON ingest.commands, ingest.command_steps FROM iiot_observer;
        GRANT SELECT (tenant_id, id, device_id, two_way, status, created_at, expires_at, sent_at,
          acknowledged_at, completed_at, attempts) ON ingest.commands TO iiot_observer;
        GRANT SELECT (tenant_id, command_id, at, status) ON ingest.command_steps TO iiot_observer;
        """
    )
