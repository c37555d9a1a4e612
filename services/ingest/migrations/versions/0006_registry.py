"""Profiles, groups, tags, attributes, credentials of several kinds, what was last seen."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What an older release reads goes on working.

    Of what it writes one thing does not: it cannot give tokens, so until it is replaced, registering
    a device and giving it a new token are refused by it.
    """
    _create_groups_and_profiles()
    _widen_devices()
    _create_belongings()
    _create_credentials()
    _create_look_ups()
    _create_contacts_of_devices()


def _create_groups_and_profiles() -> None:
    script(
        """
        CREATE TABLE ingest.device_profiles (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          description text NOT NULL DEFAULT '',
          metrics jsonb NOT NULL DEFAULT '{}',
          protocol text,
          payload_format text,
          fields jsonb NOT NULL DEFAULT '{}',
          offline_after interval,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );

        -- A tree. `path` holds the ids from the root down to the group itself.
        CREATE TABLE ingest.device_groups (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          parent_id uuid,
          name text NOT NULL,
          kind text NOT NULL,
          path uuid[] NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id),
          FOREIGN KEY (tenant_id, parent_id) REFERENCES ingest.device_groups,
          UNIQUE NULLS NOT DISTINCT (tenant_id, parent_id, name)
        );
        """
    )
    protect("ingest.device_profiles", "ingest")
    protect("ingest.device_groups", "ingest")


def _widen_devices() -> None:
    script(
        """
        ALTER TABLE ingest.devices
          ADD COLUMN serial text,
          ADD COLUMN profile_id uuid,
          ADD COLUMN group_id uuid,
          ADD COLUMN tags text[] NOT NULL DEFAULT '{}',
          ADD COLUMN is_claimed boolean NOT NULL DEFAULT true,
          -- The key by which it registered itself.
          ADD COLUMN provisioned_by uuid,
          ADD COLUMN deleted_at timestamptz,
          ADD FOREIGN KEY (tenant_id, profile_id) REFERENCES ingest.device_profiles
            ON DELETE SET NULL (profile_id),
          ADD FOREIGN KEY (tenant_id, group_id) REFERENCES ingest.device_groups
            ON DELETE SET NULL (group_id),
          DROP CONSTRAINT devices_tenant_id_name_key;
        -- Under the constraint's name, by which an older release knows it.
        CREATE UNIQUE INDEX devices_tenant_id_name_key ON ingest.devices (tenant_id, name)
          WHERE deleted_at IS NULL;
        CREATE UNIQUE INDEX devices_serial ON ingest.devices (tenant_id, serial)
          WHERE deleted_at IS NULL AND serial IS NOT NULL;
        CREATE INDEX devices_of_group ON ingest.devices (tenant_id, group_id, created_at, id)
          WHERE group_id IS NOT NULL;
        CREATE INDEX devices_of_profile ON ingest.devices (tenant_id, profile_id)
          WHERE profile_id IS NOT NULL;
        CREATE INDEX devices_of_status ON ingest.devices (tenant_id, status, created_at, id);
        CREATE INDEX devices_deleted ON ingest.devices (deleted_at) WHERE deleted_at IS NOT NULL;
        GRANT SELECT (deleted_at) ON ingest.devices TO ingest_engine;
        """
    )


def _create_belongings() -> None:
    script(
        """
        -- What was last heard of a device. Apart from it, because it is written often. A device that
        -- was never heard of was seen in 1970.
        CREATE TABLE ingest.contacts (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          seen_at timestamptz NOT NULL DEFAULT 'epoch',
          protocol text,
          payload_format text,
          offline_due_at timestamptz,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );
        CREATE INDEX contacts_latest ON ingest.contacts (tenant_id, seen_at, device_id);
        CREATE INDEX contacts_by_protocol ON ingest.contacts (tenant_id, protocol)
          WHERE protocol IS NOT NULL;
        CREATE INDEX contacts_due ON ingest.contacts (offline_due_at)
          WHERE offline_due_at IS NOT NULL;

        CREATE TABLE ingest.device_attributes (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          scope text NOT NULL CHECK (scope IN ('server', 'shared', 'client')),
          attributes jsonb NOT NULL,
          updated_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, device_id, scope),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE
        );

        CREATE TABLE ingest.claims (
          tenant_id uuid NOT NULL,
          device_id uuid NOT NULL,
          token_hash bytea NOT NULL,
          created_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, device_id),
          FOREIGN KEY (tenant_id, device_id) REFERENCES ingest.devices ON DELETE CASCADE,
          UNIQUE (tenant_id, token_hash)
        );

        CREATE TABLE ingest.provisioning_keys (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          name text NOT NULL,
          token_hash bytea NOT NULL,
          device_type text NOT NULL,
          profile_id uuid,
          group_id uuid,
          tags text[] NOT NULL DEFAULT '{}',
          is_enabled boolean NOT NULL,
          expires_at timestamptz,
          max_devices int,
          devices int NOT NULL DEFAULT 0,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name),
          FOREIGN KEY (tenant_id, profile_id) REFERENCES ingest.device_profiles
            ON DELETE SET NULL (profile_id),
          FOREIGN KEY (tenant_id, group_id) REFERENCES ingest.device_groups
            ON DELETE SET NULL (group_id)
        );
        CREATE UNIQUE INDEX provisioning_keys_token ON ingest.provisioning_keys (token_hash);
        """
    )
    protect("ingest.contacts", "ingest")
    protect("ingest.device_attributes", "ingest")
    protect("ingest.claims", "ingest")
    protect("ingest.provisioning_keys", "ingest")
    script(
        """
        GRANT SELECT (tenant_id, device_id, offline_due_at) ON ingest.contacts TO ingest_engine;
        -- What devices and people wrote is the tenant's business.
        REVOKE SELECT ON ingest.device_attributes FROM iiot_observer;
        GRANT SELECT (tenant_id, device_id, scope, updated_at) ON ingest.device_attributes
          TO iiot_observer;
        REVOKE SELECT ON ingest.claims, ingest.provisioning_keys FROM iiot_observer;
        """
    )


def _create_credentials() -> None:
    script(
        """
        -- A device may have several. `token_hash` is the SHA-256 of what is shown: of a token, of a
        -- certificate (in DER), of the identity that a sealed secret belongs to.
        ALTER TABLE ingest.credentials
          ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid(),
          ADD COLUMN kind text NOT NULL DEFAULT 'token'
            CHECK (kind IN ('token', 'certificate', 'psk', 'oscore')),
          ADD COLUMN identity text,
          ADD COLUMN sealed bytea,
          ADD COLUMN expires_at timestamptz,
          DROP CONSTRAINT credentials_pkey,
          ADD PRIMARY KEY (tenant_id, device_id, id),
          ADD UNIQUE (tenant_id, kind, token_hash);
        DROP INDEX ingest.credentials_token;
        -- Certificates are no secret: that another tenant names the same must neither fail nor tell.
        CREATE UNIQUE INDEX credentials_token ON ingest.credentials (kind, token_hash)
          WHERE kind <> 'certificate';
        CREATE INDEX credentials_lookup ON ingest.credentials (token_hash);
        """
    )


def _create_look_ups() -> None:
    script(
        """
        -- The device that a credential belongs to, with all that taking its points needs. Several,
        -- if tenants name the same certificate.
        CREATE FUNCTION ingest.device_of_credential(of_kind text, hash bytea)
          RETURNS TABLE (tenant_id uuid, device_id uuid, tenant int, series jsonb, profile jsonb,
            expires_at timestamptz, credential_id uuid, sealed bytea)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT c.tenant_id, c.device_id, t.number,
            (SELECT coalesce(
               jsonb_object_agg(s.metric, jsonb_build_array(s.id, s.kind, s.unit)), '{}')
             FROM historian.series s WHERE s.tenant = t.number AND s.device_id = c.device_id),
            (SELECT jsonb_build_object('id', p.id, 'version', p.version, 'metrics', p.metrics,
               'protocol', p.protocol, 'payload_format', p.payload_format, 'fields', p.fields,
               'offline_after_s', extract(epoch FROM p.offline_after))
             FROM ingest.device_profiles p
             WHERE p.tenant_id = d.tenant_id AND p.id = d.profile_id),
            c.expires_at, c.id, c.sealed
          FROM ingest.credentials c
          JOIN ingest.devices d ON d.tenant_id = c.tenant_id AND d.id = c.device_id
          JOIN historian.tenant t ON t.id = c.tenant_id
          WHERE c.kind = of_kind AND c.token_hash = hash AND d.deleted_at IS NULL
            AND (c.expires_at IS NULL OR c.expires_at > sec.iiot_now())
            AND NOT EXISTS (
              SELECT FROM ingest.tenants x WHERE x.tenant_id = c.tenant_id AND x.status <> 'active')
        $$;

        -- The tenant that a provisioning key belongs to.
        CREATE FUNCTION ingest.tenant_of_provisioning_key(hash bytea)
          RETURNS TABLE (tenant_id uuid, id uuid)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT k.tenant_id, k.id FROM ingest.provisioning_keys k
          WHERE k.token_hash = hash AND NOT EXISTS (
            SELECT FROM ingest.tenants x WHERE x.tenant_id = k.tenant_id AND x.status <> 'active')
        $$;

        -- As an older release knows them, by the rules of this one. (They are the look-up's own by
        -- now, which their creator may not replace.)
        RESET ROLE;
        CREATE OR REPLACE FUNCTION ingest.device_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, device_id uuid, tenant int, series jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT f.tenant_id, f.device_id, f.tenant, f.series
          FROM ingest.device_of_credential('token', hash) f
        $$;
        -- Which devices may go on: those that still have every credential they came in by (null:
        -- any), of tenants that are not closed.
        CREATE OR REPLACE FUNCTION
          ingest.devices_let_in(tenants uuid[], devices uuid[], hashes bytea[])
          RETURNS SETOF uuid
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT w.device_id
          FROM unnest(tenants, devices, hashes) AS w(tenant_id, device_id, hash)
          LEFT JOIN ingest.devices d ON d.tenant_id = w.tenant_id AND d.id = w.device_id
            AND d.deleted_at IS NULL
          LEFT JOIN ingest.credentials c ON c.tenant_id = w.tenant_id
            AND c.device_id = w.device_id AND c.token_hash = w.hash
            AND (c.expires_at IS NULL OR c.expires_at > sec.iiot_now())
          WHERE NOT EXISTS (
            SELECT FROM ingest.tenants x WHERE x.tenant_id = w.tenant_id AND x.status <> 'active')
          GROUP BY w.device_id
          HAVING bool_and(d.id IS NOT NULL AND (w.hash IS NULL OR c.id IS NOT NULL))
        $$;
        SET LOCAL ROLE iiot_owner;
        """
    )
    lookup_function(
        "ingest.device_of_credential(text, bytea)",
        reads="ingest.devices, ingest.device_profiles",
        granted_to="ingest_engine",
    )
    lookup_function(
        "ingest.tenant_of_provisioning_key(bytea)",
        reads="ingest.provisioning_keys",
        granted_to="ingest_engine",
    )


def _create_contacts_of_devices() -> None:
    script(
        """
        CREATE FUNCTION ingest.on_devices_added() RETURNS trigger
          LANGUAGE plpgsql SET search_path = pg_catalog AS $$
        BEGIN
          INSERT INTO ingest.contacts (tenant_id, device_id) SELECT tenant_id, id FROM added;
          RETURN NULL;
        END $$;
        REVOKE ALL ON FUNCTION ingest.on_devices_added() FROM PUBLIC;
        CREATE TRIGGER added AFTER INSERT ON ingest.devices REFERENCING NEW TABLE AS added
          FOR EACH STATEMENT EXECUTE FUNCTION ingest.on_devices_added();

        -- For those that are there already. As the migrations' own login, which no policy binds.
        RESET ROLE;
        INSERT INTO ingest.contacts (tenant_id, device_id) SELECT tenant_id, id FROM ingest.devices;
        SET LOCAL ROLE iiot_owner;
        """
    )
