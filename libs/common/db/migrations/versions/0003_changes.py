"""What two states of a row differ in, as the audit trail shows it."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what every service's `note_changes` stands on."""
    script(
        """
        -- A value as it is shown: a long one is cut, and its length said.
        CREATE FUNCTION sec.cut(value jsonb) RETURNS jsonb
          LANGUAGE sql STABLE PARALLEL SAFE AS $$
          SELECT CASE WHEN length(value::text) <= 1000 THEN value
            ELSE to_jsonb(left(value #>> '{}', 500) || '… (' || length(value #>> '{}') || ' characters)')
          END
        $$;

        -- The columns in which two states of a row differ, before and after; NULL: there was none.
        -- Of a hidden column it is only said that it was set, changed or removed.
        -- (It returns a set of one, which lets PostgreSQL put it in place of its call.)
        CREATE FUNCTION sec.difference(old jsonb, new jsonb, ignored text[], hidden text[])
          RETURNS TABLE (before jsonb, after jsonb) LANGUAGE sql STABLE PARALLEL SAFE AS $$
          SELECT
            jsonb_object_agg(key, sec.cut(o.value))
              FILTER (WHERE o.value IS NOT NULL AND NOT key = ANY(hidden)),
            jsonb_object_agg(key, CASE
                WHEN NOT key = ANY(hidden) THEN sec.cut(n.value)
                WHEN coalesce(o.value, 'null') = 'null' THEN '"set"'
                WHEN n.value = 'null' THEN '"removed"'
                ELSE '"changed"' END)
              FILTER (WHERE n.value IS NOT NULL)
          FROM jsonb_each(old - ignored) AS o FULL JOIN jsonb_each(new - ignored) AS n USING (key)
          WHERE coalesce(o.value, 'null') <> coalesce(n.value, 'null')
        $$;

        -- A row that was added or removed, likewise; of what is hidden, that it was there.
        CREATE FUNCTION sec.shown(state jsonb, ignored text[], hidden text[])
          RETURNS TABLE (shown jsonb) LANGUAGE sql STABLE PARALLEL SAFE AS $$
          SELECT jsonb_object_agg(
            key, CASE WHEN key = ANY(hidden) THEN '"set"' ELSE sec.cut(value) END)
          FROM jsonb_each(state - ignored) WHERE value <> 'null'
        $$;

        -- The text by which one row of a table is told from the others.
        CREATE FUNCTION sec.key_of(state jsonb, columns text[]) RETURNS text
          LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
          SELECT CASE WHEN cardinality(columns) = 1 THEN state ->> columns[1] ELSE (
            SELECT string_agg(state ->> name, '/' ORDER BY place)
            FROM unnest(columns) WITH ORDINALITY AS c (name, place)) END
        $$;
        """
    )
