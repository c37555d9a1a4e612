"""Invitations; and what a tenant calls a user is kept by the tenant alone."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let users join by an invitation that they accept, with a password that they choose."""
    script(
        """
        ALTER TABLE tenancy.memberships DROP CONSTRAINT memberships_status_check;
        ALTER TABLE tenancy.memberships ADD CONSTRAINT memberships_status_check
          CHECK (status IN ('invited', 'active', 'disabled'));

        -- One for each membership at most: a new one voids the old, and acceptance removes it.
        CREATE TABLE tenancy.invitations (
          tenant_id uuid NOT NULL,
          user_id uuid NOT NULL,
          token_hash bytea NOT NULL,
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, user_id),
          FOREIGN KEY (tenant_id, user_id) REFERENCES tenancy.memberships ON DELETE CASCADE
        );
        -- Tokens are random: that two are equal does not happen, so the index tells nobody anything.
        CREATE UNIQUE INDEX invitations_token ON tenancy.invitations (token_hash);

        DROP FUNCTION tenancy.add_user(uuid, text, text, text, timestamptz);
        DROP FUNCTION tenancy.add_first_admin(uuid, text, text, text, timestamptz);
        DROP FUNCTION tenancy.user_of_email(text);
        DROP FUNCTION tenancy.user_of_id(uuid);
        DROP FUNCTION tenancy.memberships_of_user(uuid);
        ALTER TABLE tenancy.users DROP COLUMN name;
        """
    )
    protect("tenancy.invitations", "tenancy")
    script(
        """
        REVOKE SELECT ON tenancy.invitations FROM iiot_observer;
        GRANT SELECT (tenant_id, user_id, expires_at) ON tenancy.invitations TO iiot_observer;

        -- Adds a user without a password, or finds the one who has the address already: who asks
        -- cannot tell the two apart. The row is locked, so that it cannot be forgotten before its
        -- membership is written.
        CREATE FUNCTION tenancy.add_user(new_id uuid, address text, at timestamptz) RETURNS uuid
          LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          INSERT INTO tenancy.users (id, email, created_at) VALUES (new_id, address, at)
          ON CONFLICT (email) DO UPDATE SET email = excluded.email RETURNING id
        $$;

        -- Adds the platform's first admin, and says whether it did: only while there is no user.
        CREATE FUNCTION tenancy.add_first_admin(
          new_id uuid, address text, hash text, at timestamptz
        ) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          -- Held until the commit: a second replica that starts now waits, and then finds them.
          PERFORM pg_advisory_xact_lock(hashtext('tenancy.first_admin'));
          IF EXISTS (SELECT FROM tenancy.users) THEN
            RETURN false;
          END IF;
          INSERT INTO tenancy.users (id, email, password_hash, is_platform_admin, created_at)
          VALUES (new_id, address, hash, true, at);
          RETURN true;
        END $$;

        -- Gives a user who has no password their first, and leaves every other password as it is.
        -- Says whether the user may still enter and has the password that `seen` says (null: none),
        -- and holds them so until the commit.
        CREATE FUNCTION tenancy.settle_password(wanted uuid, seen text, first_hash text)
          RETURNS boolean
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          UPDATE tenancy.users SET password_hash = coalesce(password_hash, first_hash)
          WHERE id = wanted AND password_hash IS NOT DISTINCT FROM seen AND suspended_at IS NULL;
          RETURN FOUND;
        END $$;

        REVOKE ALL ON FUNCTION
          tenancy.add_user, tenancy.add_first_admin, tenancy.settle_password FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION
          tenancy.add_user, tenancy.add_first_admin, tenancy.settle_password TO tenancy_rw;

        CREATE FUNCTION tenancy.user_of_email(address text)
          RETURNS TABLE (id uuid, password_hash text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.password_hash FROM tenancy.users AS u WHERE u.email = address
        $$;

        CREATE FUNCTION tenancy.user_of_id(wanted uuid)
          RETURNS TABLE (id uuid, email text, is_platform_admin boolean, is_suspended boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.email, u.is_platform_admin, u.suspended_at IS NOT NULL
          FROM tenancy.users AS u WHERE u.id = wanted
        $$;

        CREATE FUNCTION tenancy.memberships_of_user(wanted uuid)
          RETURNS TABLE (tenant_id uuid, tenant_slug text, tenant_name text, tenant_status text,
                         name text, status text, roles text[], own_roles jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.tenant_id, t.slug, t.name, t.status, m.name, m.status, m.roles,
            (SELECT coalesce(jsonb_object_agg(r.name, r.permissions), '{}')
             FROM tenancy.roles AS r
             WHERE r.tenant_id = m.tenant_id AND r.name = ANY(m.roles))
          FROM tenancy.memberships AS m JOIN tenancy.tenants AS t ON t.tenant_id = m.tenant_id
          WHERE m.user_id = wanted ORDER BY m.created_at, t.slug
        $$;

        -- Who was invited where by this token, before its tenant is known.
        CREATE FUNCTION tenancy.invitation_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, user_id uuid, email text, password_hash text,
                         expires_at timestamptz)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT i.tenant_id, i.user_id, u.email, u.password_hash, i.expires_at
          FROM tenancy.invitations AS i JOIN tenancy.users AS u ON u.id = i.user_id
          WHERE i.token_hash = hash
        $$;
        """
    )
    for function, reads in (
        ("tenancy.user_of_email(text)", "tenancy.users"),
        ("tenancy.user_of_id(uuid)", "tenancy.users"),
        (
            "tenancy.memberships_of_user(uuid)",
            "tenancy.memberships, tenancy.tenants, tenancy.roles",
        ),
        ("tenancy.invitation_of_token(bytea)", "tenancy.invitations, tenancy.users"),
    ):
        lookup_function(function, reads=reads, granted_to="tenancy_engine")
