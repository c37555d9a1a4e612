"""API keys."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let programs have keys of their own."""
    script(
        """
        -- No user: a key goes on when who made it has left.
        CREATE TABLE tenancy.api_keys (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          id uuid NOT NULL,
          name text NOT NULL,
          handle text NOT NULL,
          secret_hash bytea NOT NULL,
          -- The secret before the last rotation, and until when it is good beside the new one.
          previous_hash bytea,
          overlap_until timestamptz,
          scopes text[] NOT NULL,
          allowed_networks text[] NOT NULL,
          -- The roots of what it reaches; null: all devices.
          device_groups uuid[],
          expires_at timestamptz,
          created_by uuid NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX api_keys_oldest ON tenancy.api_keys (tenant_id, created_at, id);
        -- Secrets are random: that two are equal does not happen, so the indexes tell nobody anything.
        CREATE UNIQUE INDEX api_keys_secret ON tenancy.api_keys (secret_hash);
        CREATE UNIQUE INDEX api_keys_previous ON tenancy.api_keys (previous_hash);

        -- Apart from the keys, because a use is no change of a key.
        CREATE TABLE tenancy.api_key_uses (
          tenant_id uuid NOT NULL,
          key_id uuid NOT NULL,
          used_at timestamptz NOT NULL,
          address text NOT NULL,
          PRIMARY KEY (tenant_id, key_id),
          FOREIGN KEY (tenant_id, key_id) REFERENCES tenancy.api_keys ON DELETE CASCADE
        );
        """
    )
    protect("tenancy.api_keys", "tenancy")
    protect("tenancy.api_key_uses", "tenancy")
    script(
        """
        REVOKE SELECT ON tenancy.api_keys FROM iiot_observer;
        GRANT SELECT (tenant_id, id, handle, scopes, expires_at, overlap_until, created_at, version)
          ON tenancy.api_keys TO iiot_observer;

        -- Whose a key is, before its tenant is known, and until when this secret of it is good.
        CREATE FUNCTION tenancy.api_key_of_hash(hash bytea)
          RETURNS TABLE (tenant_id uuid, key_id uuid, tenant_status text, scopes text[],
                         allowed_networks text[], device_groups uuid[], good_until timestamptz)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT k.tenant_id, k.id, t.status, k.scopes, k.allowed_networks, k.device_groups,
                 CASE WHEN k.secret_hash = hash THEN k.expires_at
                      ELSE least(k.expires_at, k.overlap_until) END
          FROM tenancy.api_keys AS k JOIN tenancy.tenants AS t ON t.tenant_id = k.tenant_id
          WHERE k.secret_hash = hash OR k.previous_hash = hash
        $$;
        """
    )
    lookup_function(
        "tenancy.api_key_of_hash(bytea)",
        reads="tenancy.api_keys, tenancy.tenants",
        granted_to="tenancy_engine",
    )
