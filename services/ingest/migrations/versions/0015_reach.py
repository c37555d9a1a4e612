"""Who is limited to groups of devices sees those alone; and where devices are is said."""

from libs.common.db.ddl import NOT_OF_A_DEVICE, belongs_to, limit_to_reach, protect, script

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

IN_A_GROUP = "group_id IN (SELECT g.id FROM ingest.device_groups g)"
"""The groups are under their own policy, and so are the devices."""

OF_DEVICES = (
    "claims",
    "commands",
    "contacts",
    "credentials",
    "device_attributes",
    "device_terms",
    "gateways",
    "ledger",
    "mqtt_sessions",
    "oscore_sequences",
    "quarantine",
)
"""Tables whose rows are of the device that `device_id` names."""


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    limit_to_reach("ingest.device_groups", "path && (SELECT sec.groups())::uuid[]")
    limit_to_reach("ingest.devices", IN_A_GROUP)
    limit_to_reach("ingest.provisioning_keys", IN_A_GROUP)
    for table in OF_DEVICES:
        limit_to_reach(f"ingest.{table}", _of_device(f"ingest.{table}"))
    limit_to_reach(
        "ingest.gateway_devices",
        f"({_of_device('ingest.gateway_devices')}"
        f" AND {_of_device('ingest.gateway_devices', 'gateway_id')})",
    )
    limit_to_reach(
        "ingest.command_steps", belongs_to("ingest.command_steps", "command_id", "ingest.commands")
    )
    # A connection to another broker brings what any device sends, and names the devices.
    limit_to_reach("ingest.connectors", NOT_OF_A_DEVICE)
    limit_to_reach("ingest.quarantine_overflow", NOT_OF_A_DEVICE)
    _keep_places()
    _find_within_reach()


def _of_device(table: str, column: str = "device_id") -> str:
    return belongs_to(table, column, "ingest.devices")


def _keep_places() -> None:
    script(
        """
        -- Devices whose place changed, and of which that is yet to be said.
        CREATE TABLE ingest.placements (
          tenant_id uuid NOT NULL,
          seq bigint GENERATED ALWAYS AS IDENTITY,
          device_ids uuid[] NOT NULL,
          PRIMARY KEY (tenant_id, seq)
        );
        -- Numbers what is said of places: of two words about one device the later stands.
        CREATE SEQUENCE ingest.placements_said;
        GRANT USAGE ON SEQUENCE ingest.placements_said TO ingest_rw;
        """
    )
    protect("ingest.placements", "ingest", privileges="SELECT, INSERT, DELETE")
    script(
        """
        GRANT SELECT (tenant_id) ON ingest.placements TO ingest_engine;

        -- Notes where devices are, if that is elsewhere than before: in the historian, and to be said.
        -- One that was never in a group has no place. A device that is moved holds its group, so that
        -- the group stays where it is meanwhile. Whoever moves it: what leaves their reach is noted too.
        CREATE FUNCTION ingest.place_devices(of_tenant uuid, devices uuid[]) RETURNS void
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        DECLARE reach text := coalesce(current_setting('app.groups', true), '');
        BEGIN
          PERFORM set_config('app.groups', '', true);
          WITH placed AS (
            INSERT INTO historian.device_places AS p (tenant_id, device_id, groups)
            SELECT d.tenant_id, d.id, coalesce(g.path, '{}')
            FROM ingest.devices d
            LEFT JOIN ingest.device_groups g ON g.tenant_id = d.tenant_id AND g.id = d.group_id
            WHERE d.tenant_id = of_tenant AND d.id = ANY(devices)
              AND (d.group_id IS NOT NULL OR EXISTS (
                SELECT FROM historian.device_places o
                WHERE o.tenant_id = d.tenant_id AND o.device_id = d.id))
            ORDER BY d.id
            ON CONFLICT (tenant_id, device_id) DO UPDATE SET groups = excluded.groups
              WHERE p.groups <> excluded.groups
            RETURNING device_id)
          INSERT INTO ingest.placements (tenant_id, device_ids)
          SELECT of_tenant, array_agg(n.device_id) FROM (
            SELECT device_id, (row_number() OVER () - 1) / 1000 AS part FROM placed) n
          GROUP BY n.part;
          PERFORM set_config('app.groups', reach, true);
        END $$;

        CREATE FUNCTION ingest.on_devices_to_place() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          PERFORM ingest.place_devices(a.tenant_id, array_agg(a.id))
            FROM added a WHERE a.group_id IS NOT NULL GROUP BY a.tenant_id;
          RETURN NULL;
        END $$;
        CREATE FUNCTION ingest.on_device_moved() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          PERFORM ingest.place_devices(NEW.tenant_id, ARRAY[NEW.id]);
          RETURN NULL;
        END $$;
        CREATE FUNCTION ingest.on_group_moved() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          PERFORM ingest.place_devices(NEW.tenant_id, array_agg(d.id))
            FROM ingest.devices d WHERE d.tenant_id = NEW.tenant_id AND d.group_id = NEW.id;
          RETURN NULL;
        END $$;
        CREATE TRIGGER to_place AFTER INSERT ON ingest.devices REFERENCING NEW TABLE AS added
          FOR EACH STATEMENT EXECUTE FUNCTION ingest.on_devices_to_place();
        CREATE TRIGGER moved AFTER UPDATE OF group_id ON ingest.devices
          FOR EACH ROW WHEN (OLD.group_id IS DISTINCT FROM NEW.group_id)
          EXECUTE FUNCTION ingest.on_device_moved();
        CREATE TRIGGER moved AFTER UPDATE OF path ON ingest.device_groups
          FOR EACH ROW WHEN (OLD.path <> NEW.path) EXECUTE FUNCTION ingest.on_group_moved();
        REVOKE ALL ON FUNCTION ingest.place_devices(uuid, uuid[]), ingest.on_devices_to_place(),
          ingest.on_device_moved(), ingest.on_group_moved() FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION ingest.place_devices(uuid, uuid[]) TO ingest_rw;

        -- Those that are there already. As the migrations' own login, which no policy binds.
        RESET ROLE;
        SELECT ingest.place_devices(d.tenant_id, array_agg(d.id)) FROM ingest.devices d
          WHERE d.group_id IS NOT NULL GROUP BY d.tenant_id;
        SET LOCAL ROLE iiot_owner;
        """
    )


def _find_within_reach() -> None:
    script(
        """
        -- As before (0012), and a caller who is limited to groups finds what is in those: what runs
        -- here looks through row-level security, and must see to that itself. (It is the look-up's
        -- own by now, which its creator may not replace.)
        RESET ROLE;
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
          reach uuid[];
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
          IF sec.groups() IS NOT NULL THEN
            reach := ARRAY(SELECT g.id FROM ingest.device_groups g
              WHERE g.tenant_id = of_tenant AND g.path && sec.groups());
            where_ := where_ || ' AND d.group_id = ANY($12)';
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
              (wanted ->> 'after_id')::uuid, most, few, reach;
        END $$;
        SET LOCAL ROLE iiot_owner;
        """
    )
