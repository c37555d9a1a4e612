"""Models, how far each has got with its series, and the anomalies they found."""

from libs.common.db.ddl import create_mailboxes, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the schema of ml."""
    script(
        """
        CREATE TABLE ml.models (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          type text NOT NULL,
          device_id uuid NOT NULL,
          metric text NOT NULL,
          series int NOT NULL,  -- the historian's number
          threshold double precision NOT NULL,
          min_points int NOT NULL,
          calm_points int NOT NULL,
          median double precision NOT NULL,
          mad double precision NOT NULL CHECK (mad > 0),
          n int NOT NULL,
          trained_from timestamptz NOT NULL,
          trained_to timestamptz NOT NULL,
          trained_at timestamptz NOT NULL,
          version int NOT NULL,
          created_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );
        CREATE INDEX models_oldest ON ml.models (tenant_id, created_at, id);
        CREATE INDEX models_device ON ml.models (tenant_id, device_id, created_at, id);

        -- One row a model: whoever scores for it holds its lock. `last_ts` as of the last write.
        CREATE TABLE ml.model_state (
          tenant_id uuid NOT NULL,
          model_id uuid NOT NULL,
          last_ts timestamptz,
          PRIMARY KEY (tenant_id, model_id),
          FOREIGN KEY (tenant_id, model_id) REFERENCES ml.models ON DELETE CASCADE
        ) WITH (fillfactor = 70);

        -- They outlive their model: what was found stays found.
        CREATE TABLE ml.anomalies (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          model_id uuid NOT NULL,
          model_version int NOT NULL,
          device_id uuid NOT NULL,
          metric text NOT NULL,
          ts timestamptz NOT NULL,
          value double precision NOT NULL,
          expected double precision NOT NULL,
          z double precision NOT NULL,
          score double precision NOT NULL,
          peak_value double precision NOT NULL,
          peak_z double precision NOT NULL,
          points int NOT NULL,
          calm int NOT NULL,
          ended_at timestamptz,
          detected_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, model_id, ts)
        );
        CREATE INDEX anomalies_newest ON ml.anomalies (tenant_id, ts, id);
        CREATE INDEX anomalies_device ON ml.anomalies (tenant_id, device_id, ts, id);
        -- One excursion of a model at a time.
        CREATE UNIQUE INDEX anomalies_open ON ml.anomalies (tenant_id, model_id) WHERE ended_at IS NULL;
        """
    )
    protect("ml.models", "ml")
    protect("ml.model_state", "ml")
    protect("ml.anomalies", "ml", privileges="SELECT, INSERT, UPDATE")
    create_mailboxes("ml")
    open_schema("ml", "ml_rw", "ml_engine")
    # The models, for the workers: points of all tenants come in one stream.
    script("GRANT SELECT ON ml.models TO ml_engine;")
