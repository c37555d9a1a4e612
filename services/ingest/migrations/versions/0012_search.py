"""Devices are found in any spelling of Unicode, sorted by name in any case, and quickly also by common words."""

from libs.common.db.ddl import script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: an older release asks the new function as it asked the old one."""
    script(
        """
        -- A text as it is looked through: in one spelling (what looks alike is alike), in one case.
        -- Not longer than an index takes, whatever characters it has.
        CREATE FUNCTION ingest.searched(written text) RETURNS text
          LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
          SELECT left(lower(normalize(written)), 600)
        $$;
        REVOKE ALL ON FUNCTION ingest.searched(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION ingest.searched(text) TO ingest_rw, iiot_lookup;

        -- As the one before, with the text as it is looked through.
        -- In PL/pgSQL, which keeps its plan; for many at once, since planning costs more than one device.
        -- A plan made while the tables are small, or not yet analysed, must do for large ones.
        CREATE OR REPLACE FUNCTION ingest.index_devices(tenants uuid[], devices uuid[]) RETURNS void
          LANGUAGE plpgsql SET search_path = pg_catalog
          SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
        BEGIN
          INSERT INTO ingest.device_terms AS t (tenant_id, device_id, search, terms)
          SELECT d.tenant_id, d.id, s.search, ARRAY(
            SELECT DISTINCT hashtextextended(w.term, s.seed) FROM (
              SELECT 'g:' || substr(s.search, i, n)
                FROM generate_series(1, length(s.search)) i, generate_series(1, 3) n
                WHERE i + n - 1 <= length(s.search)
              UNION ALL SELECT 't:' || tag FROM unnest(d.tags) tag
              UNION ALL SELECT 'y:' || d.type
              UNION ALL SELECT 'p:' || d.profile_id
              UNION ALL SELECT 'a:' || e.key || '=' || (e.value #>> '{}')
                FROM ingest.device_attributes a, jsonb_each(a.attributes) e
                WHERE a.tenant_id = d.tenant_id AND a.device_id = d.id
                  AND jsonb_typeof(e.value) IN ('string', 'number', 'boolean')
            ) w(term) WHERE w.term IS NOT NULL)
          FROM unnest(tenants, devices) AS k(tenant_id, device_id)
          JOIN ingest.devices d ON d.tenant_id = k.tenant_id AND d.id = k.device_id,
            LATERAL (SELECT ingest.searched(d.name || E'\\n' || coalesce(d.serial, '')),
              hashtextextended(d.tenant_id::text, 0)
              OFFSET 0) s(search, seed)  -- worked out once a device, and not once a term
          ON CONFLICT (tenant_id, device_id)
            DO UPDATE SET search = excluded.search, terms = excluded.terms;
        END $$;

        -- What is new waits in a list, and enters the index some 200 devices at a time, which costs a
        -- third. Every search reads the list: it is kept so short that this is a tenth of a ms.
        ALTER INDEX ingest.device_terms_terms SET (fastupdate = on, gin_pending_list_limit = 256);
        CREATE INDEX device_terms_by_name ON ingest.device_terms (tenant_id, search, device_id);
        """
    )
    script(
        """
        RESET ROLE;
        -- Those whose spelling may be another now.
        SELECT ingest.index_devices(array_agg(tenant_id), array_agg(id)) FROM ingest.devices
          WHERE octet_length(name || coalesce(serial, '')) > length(name || coalesce(serial, ''));

        -- As the one before, but it sorts by name in any case, and takes no parallel workers: to begin
        -- with them costs more than most searches.
        CREATE OR REPLACE FUNCTION ingest.find_devices(of_tenant uuid, wanted jsonb, most int)
          RETURNS SETOF uuid
          LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog
          SET max_parallel_workers_per_gather = 0 AS $$
        DECLARE
          most_few CONSTANT int := 500;
          few uuid[];
          q text := lower(normalize(wanted ->> 'q'));
          letters bigint[];
          every_term bigint[];
          any_term bigint[];
          groups uuid[];
          sorted_by text := CASE wanted ->> 'sort'
            WHEN 'name' THEN 't.search' WHEN 'last_seen_at' THEN 'c.seen_at' ELSE 'd.created_at' END;
          kind text := CASE wanted ->> 'sort' WHEN 'name' THEN 'text' ELSE 'timestamptz' END;
          way text := CASE (wanted ->> 'descending')::bool WHEN true THEN 'DESC' ELSE 'ASC' END;
          from_ text := 'ingest.devices d';
          where_ text := 'd.tenant_id = $1';
        BEGIN
          IF NOT coalesce(of_tenant = ANY(sec.tenants()::uuid[]), false) THEN
            RETURN;
          END IF;
          IF q IS NOT NULL THEN
            -- As few as cover the text: those that overlap come together, and the planner, who takes
            -- them for independent, would think what is common rare. `strpos` sees to the rest.
            SELECT array_agg(DISTINCT ingest.term(of_tenant, 'g:' ||
                substr(q, least(i, greatest(length(q) - 2, 1)), least(length(q), 3)))) INTO letters
              FROM generate_series(1, length(q), 3) i;
            where_ := where_ || ' AND strpos(t.search, $4) > 0';
          END IF;
          IF q IS NOT NULL AND wanted ->> 'sort' = 'name' THEN
            -- Letters and the order by name go together, which the planner cannot know. Those who
            -- have rare ones are named; common ones are looked for in the index of names alone.
            -- Planned anew each time: it depends on the letters.
            EXECUTE 'SELECT array_agg(f.device_id) FROM (SELECT t.device_id'
              || ' FROM ingest.device_terms t WHERE t.tenant_id = $1 AND t.terms @> $2 LIMIT $3) f'
              INTO few USING of_tenant, letters, most_few + 1;
            IF few IS NULL THEN
              RETURN;
            END IF;
            IF cardinality(few) <= most_few THEN
              where_ := where_ || ' AND d.id = ANY($11)';
            END IF;
            letters := NULL;
          END IF;
          SELECT letters || array_agg(DISTINCT ingest.term(of_tenant, w.term)) INTO every_term FROM (
            SELECT 't:' || t
              FROM jsonb_array_elements_text(coalesce(wanted -> 'tags', '[]')) t
            UNION ALL SELECT 'a:' || a
              FROM jsonb_array_elements_text(coalesce(wanted -> 'attributes', '[]')) a
            UNION ALL SELECT 'y:' || (wanted ->> 'type')
            UNION ALL SELECT 'p:' || (wanted ->> 'profile_id')
          ) w(term) WHERE w.term IS NOT NULL;
          SELECT array_agg(ingest.term(of_tenant, 't:' || t)) INTO any_term
            FROM jsonb_array_elements_text(coalesce(wanted -> 'any_tag', '[]')) t;
          IF q IS NOT NULL OR every_term IS NOT NULL OR any_term IS NOT NULL
            OR sorted_by = 't.search' THEN
            from_ := from_ || ' JOIN ingest.device_terms t'
              || ' ON t.tenant_id = $1 AND t.tenant_id = d.tenant_id AND t.device_id = d.id';
          END IF;
          IF every_term IS NOT NULL THEN
            where_ := where_ || ' AND t.terms @> $2';
          END IF;
          IF any_term IS NOT NULL THEN
            where_ := where_ || ' AND t.terms && $3';
          END IF;
          IF wanted ? 'group_id' THEN
            groups := ARRAY(SELECT g.id FROM ingest.device_groups g
              WHERE g.tenant_id = of_tenant AND (wanted ->> 'group_id')::uuid = ANY(g.path));
            where_ := where_ || ' AND d.group_id = ANY($5)';
          END IF;
          IF wanted ? 'status' THEN
            where_ := where_ || ' AND d.status = $6';
          END IF;
          IF wanted ? 'protocol' OR sorted_by = 'c.seen_at' THEN
            from_ := from_ || ' JOIN ingest.contacts c'
              || ' ON c.tenant_id = $1 AND c.tenant_id = d.tenant_id AND c.device_id = d.id';
          END IF;
          IF wanted ? 'protocol' THEN
            where_ := where_ || ' AND c.protocol = $7';
          END IF;
          where_ := where_ || CASE WHEN (wanted ->> 'deleted')::bool
            THEN ' AND d.deleted_at IS NOT NULL' ELSE ' AND d.deleted_at IS NULL' END;
          IF wanted ? 'after_id' THEN
            where_ := where_ || format(
              ' AND (%s, d.id) %s ($8::%s, $9)', sorted_by,
              CASE way WHEN 'DESC' THEN '<' ELSE '>' END, kind);
          END IF;
          RETURN QUERY EXECUTE format(
            'SELECT d.id FROM %s WHERE %s ORDER BY %s %s, d.id %s LIMIT $10',
            from_, where_, sorted_by, way, way)
            USING of_tenant, every_term, any_term, q, groups, wanted ->> 'status',
              wanted ->> 'protocol',
              CASE sorted_by WHEN 't.search' THEN ingest.searched(wanted ->> 'after_key')
                ELSE wanted ->> 'after_key' END,
              (wanted ->> 'after_id')::uuid, most, few;
        END $$;
        SET LOCAL ROLE iiot_owner;
        """
    )
