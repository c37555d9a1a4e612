"""What devices are found by: names in any spelling and case, tags, attributes; quickly also by common words."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only. The devices that are there are indexed as they are."""
    _create_index()
    _create_look_up()
    script(
        """
        -- As the migrations' own login, which no policy binds.
        RESET ROLE;
        SELECT ingest.index_devices(array_agg(tenant_id), array_agg(id)) FROM ingest.devices;
        SET LOCAL ROLE iiot_owner;
        """
    )


def _create_index() -> None:
    script(
        """
        -- What a device can be found by, as numbers that differ from tenant to tenant: every one, two
        -- and three letters of its name and serial number, its tags, type, profile and attributes.
        CREATE TABLE ingest.device_terms (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          search text NOT NULL,
          terms bigint[] NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );
        -- What is new waits in a list, and enters the index some 200 devices at a time, which costs a
        -- third. Every search reads the list: it is kept so short that this is a tenth of a ms.
        CREATE INDEX device_terms_terms ON ingest.device_terms USING gin (terms)
          WITH (fastupdate = on, gin_pending_list_limit = 256);
        CREATE INDEX device_terms_by_name ON ingest.device_terms (tenant_id, search, device_id);
        """
    )
    protect("ingest.device_terms", "ingest")
    script(
        """
        REVOKE SELECT ON ingest.device_terms FROM iiot_observer;

        CREATE FUNCTION ingest.term(of_tenant uuid, term text) RETURNS bigint
          LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
          SELECT hashtextextended(term, hashtextextended(of_tenant::text, 0))
        $$;

        -- A text as it is looked through: in one spelling (what looks alike is alike), in one case.
        -- Not longer than an index takes, whatever characters it has.
        CREATE FUNCTION ingest.searched(written text) RETURNS text
          LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
          SELECT left(lower(normalize(written)), 600)
        $$;
        REVOKE ALL ON FUNCTION ingest.searched(text) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION ingest.searched(text) TO ingest_rw, iiot_lookup;

        -- In PL/pgSQL, which keeps its plan; for many at once, since planning costs more than one device.
        -- A plan made while the tables are small, or not yet analysed, must do for large ones.
        CREATE FUNCTION ingest.index_devices(tenants uuid[], devices uuid[]) RETURNS void
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

        CREATE FUNCTION ingest.on_devices_to_index() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          -- Who brings the attributes next need not pay for the terms twice.
          IF current_setting('ingest.attributes_follow', true) IS DISTINCT FROM 'on' THEN
            PERFORM ingest.index_devices(array_agg(tenant_id), array_agg(id)) FROM added;
          END IF;
          RETURN NULL;
        END $$;
        CREATE FUNCTION ingest.on_device_changed() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          PERFORM ingest.index_devices(ARRAY[NEW.tenant_id], ARRAY[NEW.id]);
          RETURN NULL;
        END $$;
        CREATE FUNCTION ingest.on_attributes_changed() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          PERFORM ingest.index_devices(array_agg(tenant_id), array_agg(device_id))
            FROM (SELECT DISTINCT tenant_id, device_id FROM changed) k;
          RETURN NULL;
        END $$;
        CREATE TRIGGER to_index AFTER INSERT ON ingest.devices REFERENCING NEW TABLE AS added
          FOR EACH STATEMENT EXECUTE FUNCTION ingest.on_devices_to_index();
        CREATE TRIGGER changed AFTER UPDATE OF name, serial, type, tags, profile_id
          ON ingest.devices FOR EACH ROW EXECUTE FUNCTION ingest.on_device_changed();
        CREATE TRIGGER added AFTER INSERT ON ingest.device_attributes
          REFERENCING NEW TABLE AS changed
          FOR EACH STATEMENT EXECUTE FUNCTION ingest.on_attributes_changed();
        CREATE TRIGGER changed AFTER UPDATE ON ingest.device_attributes
          REFERENCING NEW TABLE AS changed
          FOR EACH STATEMENT EXECUTE FUNCTION ingest.on_attributes_changed();
        REVOKE ALL ON FUNCTION ingest.term(uuid, text), ingest.index_devices(uuid[], uuid[]),
          ingest.on_devices_to_index(), ingest.on_device_changed(), ingest.on_attributes_changed()
          FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION ingest.index_devices(uuid[], uuid[]) TO ingest_rw;
        GRANT EXECUTE ON FUNCTION ingest.term(uuid, text) TO iiot_lookup;
        """
    )


def _create_look_up() -> None:
    script(
        """
        -- The ids of a page of a tenant's devices. Row-level security lets no index be used for what
        -- is not proof against leaks (an array that holds another, a text within a text), which is
        -- why this looks through it, for a tenant that the caller's transaction is bound to.
        -- It takes no parallel workers: to begin with them costs more than most searches.
        CREATE FUNCTION ingest.find_devices(of_tenant uuid, wanted jsonb, most int)
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
        """
    )
    lookup_function(
        "ingest.find_devices(uuid, jsonb, integer)",
        reads="ingest.device_terms, ingest.contacts, ingest.device_groups",
        granted_to="ingest_rw",
    )
