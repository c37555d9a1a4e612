"""Connections belong to an endpoint with a lease; the quarantine knows what may be replayed, and its bounds."""

from libs.common.db.ddl import protect, script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add who holds which device's connection, and how much a tenant's quarantine may hold."""
    script(
        """
        -- The processes that devices connect to. A lease that ended never begins again: its process
        -- takes a new one and says anew who is connected.
        CREATE TABLE ingest.endpoints (
          id uuid PRIMARY KEY,
          opened_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL
        );
        GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.endpoints TO ingest_rw;
        GRANT SELECT ON ingest.endpoints TO iiot_observer;

        ALTER TABLE ingest.devices ADD COLUMN endpoint_id uuid, ADD COLUMN connected_at timestamptz;
        CREATE INDEX devices_of_endpoint ON ingest.devices (endpoint_id)
          WHERE endpoint_id IS NOT NULL;
        GRANT SELECT (tenant_id, id, endpoint_id) ON ingest.devices TO ingest_engine;

        ALTER TABLE ingest.quarantine
          ADD COLUMN channel text NOT NULL DEFAULT 'telemetry'
            CHECK (channel IN ('telemetry', 'alerts', 'status')),
          ADD COLUMN cut_from int;

        -- How much of a tenant's quarantine gave way to what came later.
        CREATE TABLE ingest.quarantine_overflow (
          tenant_id uuid PRIMARY KEY,
          dropped bigint NOT NULL,
          since timestamptz NOT NULL,
          latest timestamptz NOT NULL
        );
        """
    )
    protect("ingest.quarantine_overflow", "ingest", privileges="SELECT, DELETE")
    script(
        """
        CREATE POLICY by_function ON ingest.quarantine TO iiot_owner
          USING (true) WITH CHECK (true);
        CREATE POLICY by_function ON ingest.quarantine_overflow TO iiot_owner
          USING (true) WITH CHECK (true);

        -- Lets the oldest of a tenant's entries give way if there are more than may be, and counts
        -- them; returns how many those were. A tenth goes at once, so that not every entry of a
        -- flood costs a look at all the others.
        CREATE FUNCTION ingest.trim_quarantine(of_tenant uuid, most_rows int, most_bytes bigint)
          RETURNS int
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE held bigint; weight bigint; gone int := 0;
        BEGIN
          -- The owner is under row-level security too. (The writer, who calls, is bound to no tenant.)
          PERFORM set_config('app.tenant_ids', format('{%s}', of_tenant), true);
          SELECT count(*), coalesce(sum(octet_length(payload)), 0) INTO held, weight
            FROM ingest.quarantine WHERE tenant_id = of_tenant;
          -- If another writer is at it, it is let be: two would wait for each other's rows.
          IF (held > most_rows OR weight > most_bytes)
            AND pg_try_advisory_xact_lock(hashtextextended('ingest.quarantine ' || of_tenant, 0))
          THEN
            WITH ranked AS (
              SELECT id, row_number() OVER newest AS place,
                sum(octet_length(payload)) OVER newest AS weight
              FROM ingest.quarantine WHERE tenant_id = of_tenant
              WINDOW newest AS (ORDER BY received_at DESC, id DESC))
            DELETE FROM ingest.quarantine q USING ranked r
              WHERE q.tenant_id = of_tenant AND q.id = r.id
                AND (r.place > most_rows * 0.9 OR r.weight > most_bytes * 0.9);
            GET DIAGNOSTICS gone = ROW_COUNT;
            INSERT INTO ingest.quarantine_overflow AS o (tenant_id, dropped, since, latest)
              VALUES (of_tenant, gone, sec.iiot_now(), sec.iiot_now())
              ON CONFLICT (tenant_id) DO UPDATE
              SET dropped = o.dropped + excluded.dropped, latest = excluded.latest;
          END IF;
          PERFORM set_config('app.tenant_ids', '', true);
          RETURN gone;
        END $$;
        REVOKE ALL ON FUNCTION ingest.trim_quarantine(uuid, int, bigint) FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION ingest.trim_quarantine(uuid, int, bigint) TO historian_writer;

        -- What devices sent is the tenant's business: operators count it, and do not read it.
        REVOKE SELECT ON ingest.quarantine FROM iiot_observer;
        GRANT SELECT (tenant_id, id, device_id, received_at, reason, metric, channel, cut_from)
          ON ingest.quarantine TO iiot_observer;
        """
    )
