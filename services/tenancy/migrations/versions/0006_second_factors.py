"""Second factors: one-time codes, recovery codes and passkeys."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

USERS_TABLES = ("one_time_codes", "recovery_codes", "passkeys")


def upgrade() -> None:
    """Let users prove themselves by more than a password, and tenants ask for it."""
    script(
        """
        -- The authenticator app of a user (RFC 6238); not confirmed: it does not count yet.
        CREATE TABLE tenancy.one_time_codes (
          user_id uuid PRIMARY KEY REFERENCES tenancy.users ON DELETE CASCADE,
          id uuid NOT NULL UNIQUE,
          secret bytea NOT NULL,  -- sealed
          created_at timestamptz NOT NULL,
          confirmed_at timestamptz,
          last_used_at timestamptz,
          -- A code is good once: what comes must be of a later step than the last that was taken.
          last_step bigint NOT NULL DEFAULT 0,
          -- Wrong codes since the last right one, and when the last of them came.
          failures int NOT NULL DEFAULT 0,
          failed_at timestamptz
        );
        CREATE TABLE tenancy.recovery_codes (
          user_id uuid NOT NULL REFERENCES tenancy.users ON DELETE CASCADE,
          code_hash bytea NOT NULL,
          PRIMARY KEY (user_id, code_hash)
        );
        CREATE TABLE tenancy.passkeys (
          id uuid PRIMARY KEY,
          user_id uuid NOT NULL REFERENCES tenancy.users ON DELETE CASCADE,
          credential_id bytea NOT NULL UNIQUE,
          public_key bytea NOT NULL,
          sign_count bigint NOT NULL,
          transports text[] NOT NULL,
          name text NOT NULL,
          created_at timestamptz NOT NULL,
          last_used_at timestamptz
        );
        CREATE INDEX passkeys_of_user ON tenancy.passkeys (user_id, created_at);

        -- What a tenant asks of those who enter it; no row: nothing special.
        CREATE TABLE tenancy.login_policies (
          tenant_id uuid PRIMARY KEY REFERENCES tenancy.tenants ON DELETE CASCADE,
          require_second_factor boolean NOT NULL,
          updated_at timestamptz NOT NULL
        );
        """
    )
    protect("tenancy.login_policies", "tenancy")
    for table in USERS_TABLES:
        # A user works for several tenants: a transaction reaches the users who are members of those
        # it is bound to.
        script(
            f"""
            ALTER TABLE tenancy.{table} ENABLE ROW LEVEL SECURITY;
            ALTER TABLE tenancy.{table} FORCE ROW LEVEL SECURITY;
            CREATE POLICY members_only ON tenancy.{table} TO tenancy_rw USING (EXISTS (
              SELECT FROM tenancy.memberships AS m
              WHERE m.user_id = {table}.user_id
                AND m.tenant_id = ANY((SELECT sec.tenants())::uuid[])));
            GRANT SELECT, INSERT, UPDATE, DELETE ON tenancy.{table} TO tenancy_rw;
            """
        )
    script(
        """
        -- What a login of a user takes beyond the first factor, before a tenant is known.
        CREATE FUNCTION tenancy.login_terms(wanted uuid)
          RETURNS TABLE (has_codes boolean, has_passkey boolean, has_recovery boolean,
                         required_by uuid[])
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT
            EXISTS (SELECT FROM tenancy.one_time_codes AS c
                    WHERE c.user_id = wanted AND c.confirmed_at IS NOT NULL),
            EXISTS (SELECT FROM tenancy.passkeys AS p WHERE p.user_id = wanted),
            EXISTS (SELECT FROM tenancy.recovery_codes AS r WHERE r.user_id = wanted),
            ARRAY(SELECT l.tenant_id FROM tenancy.login_policies AS l
                  JOIN tenancy.memberships AS m ON m.tenant_id = l.tenant_id
                  WHERE m.user_id = wanted AND l.require_second_factor)
        $$;

        -- Whose passkey it is: who logs in by one says nothing else.
        CREATE FUNCTION tenancy.user_of_passkey(credential bytea) RETURNS uuid
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT p.user_id FROM tenancy.passkeys AS p WHERE p.credential_id = credential
        $$;
        """
    )
    lookup_function(
        "tenancy.login_terms(uuid)",
        reads="tenancy.one_time_codes, tenancy.passkeys, tenancy.recovery_codes,"
        " tenancy.login_policies, tenancy.memberships",
        granted_to="tenancy_engine",
    )
    lookup_function(
        "tenancy.user_of_passkey(bytea)", reads="tenancy.passkeys", granted_to="tenancy_engine"
    )
