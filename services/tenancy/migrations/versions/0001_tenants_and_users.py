"""Tenants, users, memberships and roles."""

from libs.common.db.ddl import create_mailboxes, lookup_function, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create tenancy's schema."""
    script(
        """
        -- A tenant belongs to itself: its id is the `tenant_id` that its policy looks at.
        CREATE TABLE tenancy.tenants (
          tenant_id uuid PRIMARY KEY,
          -- Unique in the installation: only the platform's admins choose slugs, and they see all.
          slug text NOT NULL UNIQUE,
          name text NOT NULL,
          status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1
        );

        -- A person, once in the installation, whatever tenants they work for.
        CREATE TABLE tenancy.users (
          id uuid PRIMARY KEY,
          email text NOT NULL UNIQUE,  -- in lower case
          name text NOT NULL,
          password_hash text,
          is_platform_admin boolean NOT NULL DEFAULT false,
          suspended_at timestamptz,
          created_at timestamptz NOT NULL
        );

        CREATE TABLE tenancy.memberships (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          user_id uuid NOT NULL REFERENCES tenancy.users,
          name text NOT NULL,
          roles text[] NOT NULL,
          status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, user_id)
        );
        CREATE INDEX memberships_oldest ON tenancy.memberships (tenant_id, created_at, user_id);
        -- For the look-up at login, which asks for a user's tenants.
        CREATE INDEX memberships_of_user ON tenancy.memberships (user_id, tenant_id);

        -- The roles a tenant made for itself; those that all have are in the code.
        CREATE TABLE tenancy.roles (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          name text NOT NULL,
          description text NOT NULL,
          permissions text[] NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, name)
        );
        """
    )
    protect("tenancy.tenants", "tenancy")
    protect("tenancy.memberships", "tenancy")
    protect("tenancy.roles", "tenancy")
    create_mailboxes("tenancy")
    open_schema("tenancy", "tenancy_rw", "tenancy_engine")
    script(
        """
        -- A tenant sees the users who are its members, and never a password's hash.
        -- Users are written through the functions below alone, which their owner may.
        ALTER TABLE tenancy.users ENABLE ROW LEVEL SECURITY;
        ALTER TABLE tenancy.users FORCE ROW LEVEL SECURITY;
        CREATE POLICY members_only ON tenancy.users FOR SELECT TO tenancy_rw USING (EXISTS (
          SELECT FROM tenancy.memberships AS m
          WHERE m.user_id = users.id AND m.tenant_id = ANY((SELECT sec.tenants())::uuid[])));
        CREATE POLICY by_function ON tenancy.users TO iiot_owner USING (true) WITH CHECK (true);
        GRANT SELECT (id, email) ON tenancy.users TO tenancy_rw;
        GRANT SELECT (id, is_platform_admin, suspended_at, created_at)
          ON tenancy.users TO iiot_observer;

        -- Adds a user, or finds the one who has the address already and is left as they are: who
        -- asks cannot tell the two apart. The row is locked, so that it cannot be forgotten
        -- before its membership is written.
        CREATE FUNCTION tenancy.add_user(
          new_id uuid, address text, full_name text, hash text, at timestamptz
        ) RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          INSERT INTO tenancy.users (id, email, name, password_hash, created_at)
          VALUES (new_id, address, full_name, hash, at)
          ON CONFLICT (email) DO UPDATE SET email = excluded.email RETURNING id
        $$;

        -- Adds the platform's first admin, and says whether it did: only while there is no user.
        CREATE FUNCTION tenancy.add_first_admin(
          new_id uuid, address text, full_name text, hash text, at timestamptz
        ) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          -- Held until the commit: a second replica that starts now waits, and then finds them.
          PERFORM pg_advisory_xact_lock(hashtext('tenancy.first_admin'));
          IF EXISTS (SELECT FROM tenancy.users) THEN
            RETURN false;
          END IF;
          INSERT INTO tenancy.users (id, email, name, password_hash, is_platform_admin, created_at)
          VALUES (new_id, address, full_name, hash, true, at);
          RETURN true;
        END $$;

        -- Bars a user from the whole installation from a moment on, or lets them in again (null).
        -- Says whether that changed anything.
        CREATE FUNCTION tenancy.bar_user(user_id uuid, since timestamptz) RETURNS boolean
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          UPDATE tenancy.users SET suspended_at = since
          WHERE id = user_id AND (suspended_at IS NULL) <> (since IS NULL);
          RETURN FOUND;
        END $$;

        -- Forgets those of the users who belong nowhere any more. (The foreign key looks at all
        -- tenants' memberships, which nobody here may.)
        CREATE FUNCTION tenancy.forget_users(ids uuid[]) RETURNS void
          LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        DECLARE one uuid;
        BEGIN
          FOREACH one IN ARRAY ids LOOP
            BEGIN
              DELETE FROM tenancy.users WHERE id = one AND NOT is_platform_admin;
            EXCEPTION WHEN foreign_key_violation THEN
              NULL;
            END;
          END LOOP;
        END $$;

        REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tenancy FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION
          tenancy.add_user, tenancy.add_first_admin, tenancy.bar_user, tenancy.forget_users
          TO tenancy_rw;

        -- The look-ups before a tenant is known: at login, at the refresh of a session, and for
        -- the platform's admins.
        CREATE FUNCTION tenancy.user_of_email(address text)
          RETURNS TABLE (id uuid, email text, name text, password_hash text,
                         is_platform_admin boolean, is_suspended boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.email, u.name, u.password_hash, u.is_platform_admin,
                 u.suspended_at IS NOT NULL
          FROM tenancy.users AS u WHERE u.email = address
        $$;

        CREATE FUNCTION tenancy.user_of_id(wanted uuid)
          RETURNS TABLE (id uuid, email text, name text,
                         is_platform_admin boolean, is_suspended boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.email, u.name, u.is_platform_admin, u.suspended_at IS NOT NULL
          FROM tenancy.users AS u WHERE u.id = wanted
        $$;

        CREATE FUNCTION tenancy.memberships_of_user(wanted uuid)
          RETURNS TABLE (tenant_id uuid, tenant_slug text, tenant_name text, tenant_status text,
                         status text, roles text[], own_roles jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.tenant_id, t.slug, t.name, t.status, m.status, m.roles,
            (SELECT coalesce(jsonb_object_agg(r.name, r.permissions), '{}')
             FROM tenancy.roles AS r
             WHERE r.tenant_id = m.tenant_id AND r.name = ANY(m.roles))
          FROM tenancy.memberships AS m JOIN tenancy.tenants AS t ON t.tenant_id = m.tenant_id
          WHERE m.user_id = wanted ORDER BY m.created_at, t.slug
        $$;

        CREATE FUNCTION tenancy.all_tenants(after_at timestamptz, after_id uuid, at_most int)
          RETURNS SETOF tenancy.tenants
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.* FROM tenancy.tenants AS t
          WHERE after_at IS NULL OR (t.created_at, t.tenant_id) > (after_at, after_id)
          ORDER BY t.created_at, t.tenant_id LIMIT at_most
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
        ("tenancy.all_tenants(timestamptz, uuid, int)", "tenancy.tenants"),
    ):
        lookup_function(function, reads=reads, granted_to="tenancy_engine")
