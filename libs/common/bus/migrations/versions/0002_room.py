"""Room for floods, and for replicas that read slowly."""

from libs.common.db.ddl import script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let an append make room itself, and a turn keep what a replica has not read."""
    script(
        """
        DROP FUNCTION bus.turn(int, bigint);

        -- Makes room ahead and drops the partitions whose every message every subscriber has read,
        -- and every replica, whose least position is `unread` (they are not in the table).
        CREATE FUNCTION bus.turn(ahead int, span bigint, unread bigint) RETURNS void
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE
          head bigint; read bigint; start bigint; part record;
        BEGIN
          -- The lock of those who append: who makes and drops tables waits for nobody who waits for it.
          PERFORM pg_advisory_xact_lock(7301001);
          SELECT last_value INTO head FROM bus.position;
          SELECT least(min(position), unread) INTO read FROM bus.subscribers;
          FOR i IN 0 .. ahead LOOP
            start := (head / span + i) * span;
            IF to_regclass('bus.log_' || start) IS NULL THEN
              EXECUTE format(
                'CREATE TABLE bus.log_%s PARTITION OF bus.log FOR VALUES FROM (%s) TO (%s)',
                start, start, start + span);
            END IF;
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

        -- As before, but whoever enters a new partition makes the next ones: a flood must not
        -- outrun the one who looks every ten seconds. (8192 is the span that is used everywhere;
        -- position 0 as the unread keeps it from dropping.)
        CREATE OR REPLACE FUNCTION bus.append(
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
          IF last / 8192 > (last - cardinality(ids)) / 8192 THEN
            PERFORM bus.turn(2, 8192, 0);
          END IF;
          RETURN last;
        END $$;

        REVOKE ALL ON FUNCTION bus.turn FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION bus.turn TO bus_rw;
        """
    )
