"""What erases points, by the day or by the tenant; and how a reader finds its tenant's number."""

from libs.common.db.ddl import script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

READERS = "analytics_rw, ml_rw, rules_rw, retention_rw"


def upgrade() -> None:
    """Create the functions of retention and of the reader."""
    script(
        """
        -- A tenant's number, for a predicate of its own beside row-level security. It tells nothing
        -- of a tenant but that it has one, and row-level security still hides what is another's.
        CREATE FUNCTION historian.number_of(of_tenant uuid) RETURNS int
          LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog AS
          $$ SELECT number FROM historian.tenant WHERE id = of_tenant $$;

        -- As before, but what strayed into the default partition moves to its day: with points of
        -- that day in it, the day could not be attached, and nobody could write it any more.
        CREATE OR REPLACE FUNCTION historian.ensure_days(first date, last date) RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' AS $$
        DECLARE day date; base text; part text; made int := 0;
        BEGIN
          PERFORM pg_advisory_xact_lock(7301002);
          FOR day IN SELECT generate_series(first, last, '1 day')::date LOOP
            FOREACH base IN ARRAY ARRAY['points', 'texts'] LOOP
              part := base || '_' || to_char(day, 'YYYYMMDD');
              IF to_regclass('historian.' || part) IS NULL THEN
                EXECUTE format('CREATE TABLE historian.%I (LIKE historian.%I INCLUDING ALL)', part, base);
                -- The locks that attaching takes, in its order, but before the strays are looked for.
                EXECUTE format('LOCK TABLE ONLY historian.%I IN SHARE UPDATE EXCLUSIVE MODE', base);
                EXECUTE format('LOCK TABLE historian.%I IN ACCESS EXCLUSIVE MODE', base || '_default');
                EXECUTE format(
                  'WITH strays AS (DELETE FROM historian.%I WHERE ts >= %L AND ts < %L RETURNING *)'
                  ' INSERT INTO historian.%I SELECT * FROM strays',
                  base || '_default', day::timestamptz, (day + 1)::timestamptz, part);
                EXECUTE format(
                  'ALTER TABLE historian.%I ATTACH PARTITION historian.%I FOR VALUES FROM (%L) TO (%L)',
                  base, part, day::timestamptz, (day + 1)::timestamptz);
                made := made + 1;
              END IF;
            END LOOP;
          END LOOP;
          RETURN made;
        END $$;

        -- The days that have partitions, with how many rows they hold (about) and how large they are.
        CREATE FUNCTION historian.day_sizes()
          RETURNS TABLE (day date, estimated_rows bigint, bytes bigint)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT to_date(right(c.relname, 8), 'YYYYMMDD'),
            sum(greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0))::bigint,
            sum(pg_total_relation_size(c.oid))::bigint
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent IN ('historian.points'::regclass, 'historian.texts'::regclass)
            AND c.relname NOT LIKE '%\\_default'
          GROUP BY 1 ORDER BY 1
        $$;

        -- Drops a day of all tenants; false if there is none. Waits 2 s at most for those who read
        -- it, because all who come later wait behind it.
        CREATE FUNCTION historian.drop_day(day date) RETURNS boolean
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC'
          SET lock_timeout = '2s' AS $$
        DECLARE base text; part text; dropped boolean := false;
        BEGIN
          IF day >= (sec.iiot_now() - interval '23 hours')::date THEN
            RAISE EXCEPTION 'the day % is not over for long enough', day USING ERRCODE = '22023';
          END IF;
          PERFORM pg_advisory_xact_lock(7301002);
          FOREACH base IN ARRAY ARRAY['points', 'texts'] LOOP
            part := base || '_' || to_char(day, 'YYYYMMDD');
            IF to_regclass('historian.' || part) IS NOT NULL THEN
              EXECUTE format('DROP TABLE historian.%I', part);
              dropped := true;
            END IF;
            EXECUTE format('DELETE FROM historian.%I WHERE ts >= %L AND ts < %L',
                           base || '_default', day::timestamptz, (day + 1)::timestamptz);
          END LOOP;
          RETURN dropped;
        END $$;

        -- The partitions that may hold points from before a moment. Names are compared as text: the
        -- planner may look at other relations' names first, which are no dates.
        CREATE FUNCTION historian.parts_before(moment timestamptz) RETURNS SETOF name
          LANGUAGE sql STABLE SET search_path = pg_catalog SET timezone = 'UTC' AS $$
          SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent IN ('historian.points'::regclass, 'historian.texts'::regclass)
            AND (c.relname LIKE '%\\_default' OR right(c.relname, 8) <= to_char(moment, 'YYYYMMDD'))
          ORDER BY right(c.relname, 8)
        $$;

        -- Deletes a tenant's points from before a moment, `most` at a time; returns how many it was.
        CREATE FUNCTION historian.delete_expired(of_tenant uuid, before timestamptz, most int)
          RETURNS bigint
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE wanted int; part name; gone bigint; total bigint := 0;
        BEGIN
          IF before > sec.iiot_now() - interval '23 hours' THEN
            RAISE EXCEPTION 'points of the last day are not expired' USING ERRCODE = '22023';
          END IF;
          SELECT number INTO wanted FROM historian.tenant WHERE id = of_tenant;
          IF wanted IS NULL THEN RETURN 0; END IF;
          FOR part IN SELECT * FROM historian.parts_before(before) LOOP
            EXECUTE format(
              'DELETE FROM historian.%I WHERE ctid = ANY(ARRAY('
              ' SELECT ctid FROM historian.%I WHERE tenant = $1 AND ts < $2 LIMIT $3))', part, part)
              USING wanted, before, most - total;
            GET DIAGNOSTICS gone = ROW_COUNT;
            total := total + gone;
            EXIT WHEN total >= most;
          END LOOP;
          RETURN total;
        END $$;

        -- How many points of a tenant are from before a moment; it stops counting at `most`.
        CREATE FUNCTION historian.count_expired(of_tenant uuid, before timestamptz, most int)
          RETURNS bigint
          LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE wanted int; part name; found bigint; total bigint := 0;
        BEGIN
          SELECT number INTO wanted FROM historian.tenant WHERE id = of_tenant;
          FOR part IN SELECT * FROM historian.parts_before(before) LOOP
            EXECUTE format(
              'SELECT count(*) FROM (SELECT FROM historian.%I WHERE tenant = $1 AND ts < $2 LIMIT $3) e',
              part) INTO found USING wanted, before, most - total;
            total := total + found;
            EXIT WHEN total >= most;
          END LOOP;
          RETURN total;
        END $$;
        """
    )
    script(
        f"""
        REVOKE ALL ON FUNCTION historian.number_of, historian.day_sizes, historian.drop_day,
          historian.parts_before, historian.delete_expired, historian.count_expired FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION historian.number_of TO {READERS};
        GRANT USAGE ON SCHEMA historian TO retention_engine;
        GRANT SELECT ON historian.tenant TO retention_engine;
        GRANT EXECUTE ON FUNCTION historian.day_sizes, historian.drop_day,
          historian.delete_expired, historian.count_expired TO retention_engine;
        """
    )
