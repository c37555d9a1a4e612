"""Series, and their points in daily partitions."""

from libs.common.db.ddl import lookup_function, script
from libs.common.db.roles import HISTORIAN_WRITER, OBSERVER

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

READERS = "analytics_rw, ml_rw, rules_rw, retention_rw, ingest_rw"
CATALOGUE_READERS = "rules_engine, ml_engine, analytics_engine, gateway_engine, historian_writer"


def upgrade() -> None:
    """Create the historian.

    A point is keyed (tenant, series, ts), where tenant and series are the installation's small
    numbers: a key of two UUIDs doubles the disk a point takes. The widest columns stand first, so
    that none is padded.
    """
    script(
        """
        CREATE TABLE historian.tenant (
          number int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
          id uuid NOT NULL UNIQUE
        );

        -- The numbers of the bound tenants, for the policies below.
        CREATE FUNCTION historian.tenant_numbers() RETURNS int[]
          LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT coalesce(array_agg(number), '{}') FROM historian.tenant WHERE id = ANY(sec.tenants())
        $$;

        -- The number of a tenant, given on first sight.
        CREATE FUNCTION historian.tenant_number(of_tenant uuid) RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE found int;
        BEGIN
          SELECT number INTO found FROM historian.tenant WHERE id = of_tenant;
          IF found IS NULL THEN
            INSERT INTO historian.tenant (id) VALUES (of_tenant) ON CONFLICT (id) DO NOTHING;
            SELECT number INTO found FROM historian.tenant WHERE id = of_tenant;
          END IF;
          RETURN found;
        END $$;

        CREATE TABLE historian.series (
          tenant int NOT NULL,
          id int GENERATED ALWAYS AS IDENTITY,
          device_id uuid NOT NULL,
          metric text NOT NULL,
          kind smallint NOT NULL CHECK (kind IN (0, 1, 2)),  -- number, bool, text
          unit text,
          created_at timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (tenant, id),
          UNIQUE (tenant, device_id, metric),
          UNIQUE (id)
        );

        CREATE TABLE historian.points (
          ts timestamptz NOT NULL,
          value double precision NOT NULL,
          tenant int NOT NULL,
          series int NOT NULL,
          quality smallint NOT NULL,
          PRIMARY KEY (tenant, series, ts)
        ) PARTITION BY RANGE (ts);
        CREATE TABLE historian.points_default PARTITION OF historian.points DEFAULT;

        CREATE TABLE historian.texts (
          ts timestamptz NOT NULL,
          tenant int NOT NULL,
          series int NOT NULL,
          quality smallint NOT NULL,
          value text NOT NULL,
          PRIMARY KEY (tenant, series, ts)
        ) PARTITION BY RANGE (ts);
        CREATE TABLE historian.texts_default PARTITION OF historian.texts DEFAULT;

        -- What a series is, for those who work on batches of many tenants.
        CREATE FUNCTION historian.describe_series(ids int[])
          RETURNS TABLE (id int, tenant_id uuid, device_id uuid, metric text, kind smallint, unit text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT s.id, t.id, s.device_id, s.metric, s.kind, s.unit
          FROM historian.series s JOIN historian.tenant t ON t.number = s.tenant
          WHERE s.id = ANY(ids)
        $$;

        -- Makes the partitions of the days from first to last (UTC) that are missing.
        -- Attaching, other than creating in place, lets readers and writers go on.
        CREATE FUNCTION historian.ensure_days(first date, last date) RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' AS $$
        DECLARE day date; base text; part text; made int := 0;
        BEGIN
          PERFORM pg_advisory_xact_lock(7301002);
          FOR day IN SELECT generate_series(first, last, '1 day')::date LOOP
            FOREACH base IN ARRAY ARRAY['points', 'texts'] LOOP
              part := base || '_' || to_char(day, 'YYYYMMDD');
              IF to_regclass('historian.' || part) IS NULL THEN
                EXECUTE format('CREATE TABLE historian.%I (LIKE historian.%I INCLUDING ALL)', part, base);
                EXECUTE format(
                  'ALTER TABLE historian.%I ATTACH PARTITION historian.%I FOR VALUES FROM (%L) TO (%L)',
                  base, part, day::timestamptz, (day + 1)::timestamptz);
                made := made + 1;
              END IF;
            END LOOP;
          END LOOP;
          RETURN made;
        END $$;

        -- The days that have partitions of their own.
        CREATE FUNCTION historian.days() RETURNS SETOF date
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT to_date(substr(c.relname, 8), 'YYYYMMDD')
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = 'historian.points'::regclass AND c.relname <> 'points_default'
        $$;

        -- How many points no day was made for: any is an alarm.
        CREATE FUNCTION historian.strays() RETURNS bigint
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT (SELECT count(*) FROM historian.points_default)
               + (SELECT count(*) FROM historian.texts_default)
        $$;
        """
    )
    for table in ("series", "points", "texts"):
        script(
            f"""
            ALTER TABLE historian.{table} ENABLE ROW LEVEL SECURITY;
            ALTER TABLE historian.{table} FORCE ROW LEVEL SECURITY;
            CREATE POLICY tenant_isolation ON historian.{table} AS RESTRICTIVE
              USING (tenant = ANY((SELECT historian.tenant_numbers())::int[]))
              WITH CHECK (tenant = ANY((SELECT historian.tenant_numbers())::int[]));
            CREATE POLICY access ON historian.{table} USING (true) WITH CHECK (true);
            GRANT SELECT ON historian.{table} TO {READERS}, {OBSERVER};
            """
        )
    script(
        f"""
        REVOKE ALL ON ALL FUNCTIONS IN SCHEMA historian FROM PUBLIC;
        GRANT USAGE ON SCHEMA historian
          TO {READERS}, {CATALOGUE_READERS}, ingest_engine, {OBSERVER};
        GRANT EXECUTE ON FUNCTION historian.tenant_numbers TO {READERS}, {OBSERVER};
        GRANT EXECUTE ON FUNCTION historian.tenant_number TO ingest_rw, ingest_engine;
        GRANT EXECUTE ON FUNCTION historian.ensure_days TO {HISTORIAN_WRITER};
        GRANT EXECUTE ON FUNCTION historian.days TO {HISTORIAN_WRITER};
        GRANT INSERT ON historian.series TO ingest_rw;
        GRANT INSERT ON historian.points, historian.texts TO {HISTORIAN_WRITER};
        """
    )
    lookup_function(
        "historian.describe_series(int[])",
        reads="historian.series, historian.tenant",
        granted_to=CATALOGUE_READERS,
    )
    lookup_function(
        "historian.strays()",
        reads="historian.points_default, historian.texts_default",
        granted_to=f"{HISTORIAN_WRITER}, {OBSERVER}",
    )
