"""Whoever reads the log for long, a backup say, stops nobody who writes it."""

from libs.common.db.ddl import script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let those who append attach the partitions, and let dropping them give way to readers."""
    script(
        """
        DROP FUNCTION bus.turn(int, bigint, bigint);

        -- Makes the partitions from one position to the other, and two more. For bus.append, which
        -- holds the lock of those who append. Attaching, other than creating in place and dropping,
        -- neither waits for those who read nor lets them wait.
        CREATE FUNCTION bus.make_room(head bigint, upto bigint) RETURNS void
          LANGUAGE plpgsql SET search_path = pg_catalog SET lock_timeout = '2s' AS $$
        DECLARE start bigint;
        BEGIN
          BEGIN
            LOCK TABLE ONLY bus.log IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
          EXCEPTION WHEN lock_not_available THEN
            -- Somebody drops, or analyses. As long as there is room, the next who appends does it.
            IF to_regclass('bus.log_' || upto / 8192 * 8192) IS NOT NULL THEN
              RETURN;
            END IF;
            LOCK TABLE ONLY bus.log IN SHARE UPDATE EXCLUSIVE MODE;
          END;
          FOR start IN SELECT generate_series(head / 8192, upto / 8192 + 2) * 8192 LOOP
            IF to_regclass('bus.log_' || start) IS NULL THEN
              EXECUTE format('CREATE TABLE bus.log_%s (LIKE bus.log INCLUDING ALL)', start);
              EXECUTE format(
                'ALTER TABLE bus.log ATTACH PARTITION bus.log_%s FOR VALUES FROM (%s) TO (%s)',
                start, start, start + 8192);
            END IF;
          END LOOP;
        END $$;

        CREATE OR REPLACE FUNCTION bus.append(
          topics text[], ids uuid[], types text[], sources text[], times timestamptz[],
          tenants uuid[], shards int[], traceparents text[], bodies bytea[]
        ) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE head bigint; upto bigint;
        BEGIN
          PERFORM pg_advisory_xact_lock(7301001);
          SELECT last_value, last_value + cardinality(ids) INTO head, upto FROM bus.position;
          IF to_regclass('bus.log_' || (upto / 8192 + 2) * 8192) IS NULL THEN
            PERFORM bus.make_room(head, upto);
          END IF;
          INSERT INTO bus.log
            SELECT nextval('bus.position'), m.* FROM unnest(
              topics, ids, types, sources, times, tenants, shards, traceparents, bodies) AS m;
          RETURN upto;
        END $$;

        -- Lets the next message begin a new partition if the last one is larger than so: it can be
        -- dropped as soon as it is read, and need not wait for 8192 messages.
        CREATE FUNCTION bus.end_partition(larger_than bigint) RETURNS void
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
          SET lock_timeout = '2s' AS $$
        DECLARE start bigint;
        BEGIN
          SELECT last_value / 8192 * 8192 INTO start FROM bus.position;
          IF pg_total_relation_size(to_regclass('bus.log_' || start)) > larger_than THEN
            PERFORM pg_advisory_xact_lock(7301001);
            SELECT last_value / 8192 * 8192 INTO start FROM bus.position;
            PERFORM setval('bus.position', start + 8191);
          END IF;
        END $$;

        -- The partitions that no more messages come into, and whose every message is read.
        CREATE FUNCTION bus.read_partitions(unread bigint) RETURNS SETOF name
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        DECLARE head bigint; read bigint; part record; is_unread boolean;
        BEGIN
          SELECT last_value INTO head FROM bus.position;
          SELECT coalesce(least(min(position), unread), 0) INTO read FROM bus.subscribers;
          FOR part IN
            SELECT c.relname AS name, substr(c.relname, 5)::bigint + 8192 AS ends
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'bus.log'::regclass
          LOOP
            CONTINUE WHEN part.ends > head + 1;
            EXECUTE format('SELECT EXISTS (SELECT FROM bus.%I WHERE position > $1)', part.name)
              INTO is_unread USING read;
            IF NOT is_unread THEN
              RETURN NEXT part.name;
            END IF;
          END LOOP;
        END $$;

        -- Drops what every subscriber has read, and every replica, whose least position is `unread`
        -- (they are not in the table). Returns how many partitions it were: a bounded number, since
        -- each takes locks, so call it again until there are none.
        --
        -- While it waits for those who read the log, all who come later wait behind it. So it gives
        -- up soon, which is an error, and it does not hold the lock of those who append.
        CREATE FUNCTION bus.drop_read(unread bigint) RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
          SET lock_timeout = '200ms' AS $$
        DECLARE part name; dropped int := 0;
        BEGIN
          IF NOT EXISTS (SELECT FROM bus.read_partitions(unread)) THEN
            RETURN 0;
          END IF;
          LOCK TABLE ONLY bus.log IN ACCESS EXCLUSIVE MODE;
          -- Once more: now nobody has messages in one of them that are not committed.
          FOR part IN SELECT * FROM bus.read_partitions(unread) LIMIT 64 LOOP
            EXECUTE format('DROP TABLE bus.%I', part);
            dropped := dropped + 1;
          END LOOP;
          RETURN dropped;
        END $$;

        REVOKE ALL ON FUNCTION
          bus.make_room, bus.end_partition, bus.read_partitions, bus.drop_read FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION bus.end_partition, bus.drop_read TO bus_rw;
        """
    )
