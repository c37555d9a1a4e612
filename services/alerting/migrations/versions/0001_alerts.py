"""Alerts with their history, and the notifications that tell of them."""

from libs.common.db.ddl import create_mailboxes, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create alerting's schema."""
    script(
        """
        CREATE TABLE alerting.alerts (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          dedup_key text NOT NULL,
          title text NOT NULL,
          message text NOT NULL,
          severity text NOT NULL
            CHECK (severity IN ('critical', 'high', 'medium', 'low', 'info')),
          state text NOT NULL
            CHECK (state IN ('new', 'acknowledged', 'investigating', 'resolved')),
          source_kind text NOT NULL,
          source_id uuid NOT NULL,
          device_id uuid,
          metric text,
          value double precision,
          condition text,
          count int NOT NULL,
          opened_at timestamptz NOT NULL,
          last_seen_at timestamptz NOT NULL,
          acknowledged_at timestamptz,
          acknowledged_by uuid,
          resolved_at timestamptz,
          resolved_by uuid,
          resolved_how text,
          version int NOT NULL,
          PRIMARY KEY (tenant_id, id),
          CHECK ((state = 'resolved') = (resolved_at IS NOT NULL))
        );
        -- One open alert for what is one thing, whoever comes how often and at the same time.
        CREATE UNIQUE INDEX alerts_open_key ON alerting.alerts (tenant_id, dedup_key)
          WHERE state <> 'resolved';
        CREATE INDEX alerts_newest ON alerting.alerts (tenant_id, opened_at, id);
        CREATE INDEX alerts_open_newest ON alerting.alerts (tenant_id, opened_at, id)
          WHERE state <> 'resolved';
        CREATE INDEX alerts_of_device ON alerting.alerts (tenant_id, device_id, opened_at, id);

        -- What goes on until it is cleared, in whatever order that is heard.
        CREATE TABLE alerting.firings (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          alert_id uuid,
          triggered_at timestamptz,
          cleared_at timestamptz,
          recurs boolean NOT NULL,
          PRIMARY KEY (tenant_id, id),
          FOREIGN KEY (tenant_id, alert_id) REFERENCES alerting.alerts ON DELETE CASCADE
        );
        CREATE INDEX firings_of_alert ON alerting.firings (tenant_id, alert_id);
        CREATE INDEX firings_cleared ON alerting.firings (cleared_at);

        CREATE TABLE alerting.alert_history (
          tenant_id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          alert_id uuid NOT NULL,
          what text NOT NULL,
          at timestamptz NOT NULL,
          state text NOT NULL,
          severity text NOT NULL,
          by uuid,
          detail text NOT NULL,
          PRIMARY KEY (tenant_id, alert_id, seq),
          FOREIGN KEY (tenant_id, alert_id) REFERENCES alerting.alerts ON DELETE CASCADE
        );

        CREATE TABLE alerting.alert_notes (
          tenant_id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          id uuid NOT NULL,
          alert_id uuid NOT NULL,
          at timestamptz NOT NULL,
          by uuid NOT NULL,
          text text NOT NULL,
          PRIMARY KEY (tenant_id, alert_id, seq),
          UNIQUE (tenant_id, id),
          FOREIGN KEY (tenant_id, alert_id) REFERENCES alerting.alerts ON DELETE CASCADE
        );

        CREATE TABLE alerting.channels (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          kind text NOT NULL CHECK (kind IN ('email', 'webhook')),
          config jsonb NOT NULL,
          secret text,
          enabled boolean NOT NULL,
          disabled_reason text NOT NULL DEFAULT '',
          min_severity text NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );

        -- Names and kinds of channels are copied: what was sent stays told when a channel is gone.
        CREATE TABLE alerting.notifications (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          alert_id uuid NOT NULL,
          channel_id uuid NOT NULL,
          channel_name text NOT NULL,
          channel_kind text NOT NULL,
          kind text NOT NULL,
          sequence int NOT NULL DEFAULT 0,
          status text NOT NULL DEFAULT 'pending'
            CHECK (status IN ('pending', 'sending', 'delivered', 'superseded', 'dead')),
          attempts int NOT NULL DEFAULT 0,
          -- The next attempt or, while sending, the end of the lease.
          due_at timestamptz NOT NULL,
          lease_token uuid,
          created_at timestamptz NOT NULL,
          finished_at timestamptz,
          reason text NOT NULL DEFAULT '',
          receipt text NOT NULL DEFAULT '',
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, alert_id, channel_id, kind, sequence),
          FOREIGN KEY (tenant_id, alert_id) REFERENCES alerting.alerts ON DELETE CASCADE,
          CHECK ((status = 'sending') = (lease_token IS NOT NULL))
        );
        CREATE INDEX notifications_open ON alerting.notifications (tenant_id, channel_id, due_at)
          WHERE status IN ('pending', 'sending');
        CREATE INDEX notifications_of_alert ON alerting.notifications (tenant_id, alert_id, seq);

        -- What others are called, as they say it themselves. A name that was erased is NULL.
        CREATE TABLE alerting.names (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          kind text NOT NULL CHECK (kind IN ('device', 'user')),
          name text,
          changed_at timestamptz NOT NULL,
          gone boolean NOT NULL,
          PRIMARY KEY (tenant_id, id)
        );
        """
    )
    protect("alerting.alerts", "alerting")
    protect("alerting.firings", "alerting")
    protect("alerting.alert_history", "alerting", privileges="SELECT, INSERT")
    protect("alerting.alert_notes", "alerting", privileges="SELECT, INSERT")
    protect("alerting.channels", "alerting")
    protect("alerting.notifications", "alerting")
    protect("alerting.names", "alerting")
    create_mailboxes("alerting")
    open_schema("alerting", "alerting_rw", "alerting_engine")
    script(
        """
        -- Addresses and secrets are nobody's business but the tenant's.
        REVOKE SELECT ON alerting.channels FROM iiot_observer;
        GRANT SELECT (tenant_id, id, kind, enabled, disabled_reason, min_severity)
          ON alerting.channels TO iiot_observer;

        -- What crosses tenants: claiming what is due, and forgetting firings long over.
        GRANT SELECT (tenant_id, id, seq, alert_id, channel_id, status, attempts, due_at, lease_token),
          UPDATE (status, attempts, due_at, lease_token)
          ON alerting.notifications TO alerting_engine;
        GRANT SELECT (triggered_at, cleared_at), DELETE ON alerting.firings TO alerting_engine;
        """
    )
