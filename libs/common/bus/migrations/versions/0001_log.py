"""The edge's event log: messages in the order they were committed, an offset for each subscriber."""

from libs.common.db.ddl import script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the log in partitions of ids, so that what everyone has read is dropped, not deleted."""
    script(
        """
        CREATE SEQUENCE bus.position;

        CREATE TABLE bus.log (
          position bigint NOT NULL,
          topic text NOT NULL,
          id uuid NOT NULL,
          type text NOT NULL,
          source text NOT NULL,
          time timestamptz NOT NULL,
          tenant_id uuid,
          shard int,
          traceparent text,
          body bytea NOT NULL,
          PRIMARY KEY (position)
        ) PARTITION BY RANGE (position);

        CREATE TABLE bus.subscribers (
          name text PRIMARY KEY,
          position bigint NOT NULL
        );

        -- What failed for a reason of its own and is tried again, beside the stream.
        CREATE TABLE bus.retries (
          subscriber text NOT NULL REFERENCES bus.subscribers ON DELETE CASCADE,
          id uuid NOT NULL,
          attempts int NOT NULL,
          due_at timestamptz NOT NULL,
          message bytea NOT NULL,
          PRIMARY KEY (subscriber, id)
        );

        CREATE TABLE bus.dead_letters (
          subscriber text NOT NULL,
          id uuid NOT NULL,
          type text NOT NULL,
          tenant_id uuid,
          reason text NOT NULL,
          died_at timestamptz NOT NULL DEFAULT now(),
          message bytea NOT NULL,
          PRIMARY KEY (subscriber, id)
        );

        -- Appends within the caller's transaction. The lock is held until that commits, so that
        -- positions become visible in their order and a reader of "position > mine" skips none.
        CREATE FUNCTION bus.append(
          topics text[], ids uuid[], types text[], sources text[], times timestamptz[],
          tenants uuid[], shards int[], traceparents text[], bodies bytea[]
        ) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE last bigint;
        BEGIN
          PERFORM pg_advisory_xact_lock(7301001);
          INSERT INTO bus.log
            SELECT nextval('bus.position'), m.* FROM unnest(
              topics, ids, types, sources, times, tenants, shards, traceparents, bodies) AS m;
          SELECT last_value INTO last FROM bus.position;
          RETURN last;
        END $$;

        -- Makes room ahead and drops the partitions whose every message every subscriber has read.
        CREATE FUNCTION bus.turn(ahead int, span bigint) RETURNS void
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE
          head bigint; read bigint; start bigint; part record;
        BEGIN
          SELECT last_value INTO head FROM bus.position;
          SELECT min(position) INTO read FROM bus.subscribers;
          FOR i IN 0 .. ahead LOOP
            start := (head / span + i) * span;
            EXECUTE format(
              'CREATE TABLE IF NOT EXISTS bus.log_%s PARTITION OF bus.log FOR VALUES FROM (%s) TO (%s)',
              start, start, start + span);
          END LOOP;
          FOR part IN
            SELECT c.relname AS name, substr(c.relname, 5)::bigint + span AS ends
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'bus.log'::regclass
          LOOP
            IF part.ends <= coalesce(read, 0) THEN
              EXECUTE format('DROP TABLE bus.%I', part.name);
            END IF;
          END LOOP;
        END $$;

        SELECT bus.turn(2, 8192);
        """
    )
    roles = ", ".join(_appenders())
    script(
        f"""
        REVOKE ALL ON ALL FUNCTIONS IN SCHEMA bus FROM PUBLIC;
        GRANT USAGE ON SCHEMA bus TO {roles}, bus_rw, iiot_observer;
        GRANT EXECUTE ON FUNCTION bus.append TO {roles}, bus_rw;
        GRANT EXECUTE ON FUNCTION bus.turn TO bus_rw;
        GRANT SELECT ON bus.log, bus.position TO bus_rw;
        GRANT SELECT, INSERT, UPDATE, DELETE ON bus.subscribers, bus.retries, bus.dead_letters TO bus_rw;
        GRANT SELECT ON bus.subscribers, bus.retries, bus.dead_letters TO iiot_observer;
        """
    )


def _appenders() -> list[str]:
    return [
        f"{service}_rw"
        for service in (
            "gateway",
            "tenancy",
            "ingest",
            "rules",
            "analytics",
            "ml",
            "alerting",
            "retention",
        )
    ]
