"""Addresses that are confirmed, passwords that are set anew, and mail that is on its way."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let people register, confirm their address, and choose a new password by mail."""
    script(
        """
        -- When it was proved that the user reads what is sent to the address; null: not yet.
        ALTER TABLE tenancy.users ADD COLUMN email_verified_at timestamptz;
        -- Whoever installed the platform vouches for its admins.
        UPDATE tenancy.users SET email_verified_at = created_at WHERE is_platform_admin;

        -- The token that went to the invited address itself; who has it reads what is sent there.
        ALTER TABLE tenancy.invitations ADD COLUMN mailed_hash bytea;
        CREATE UNIQUE INDEX invitations_mailed ON tenancy.invitations (mailed_hash);

        -- Who may register themselves. No row: nobody.
        CREATE TABLE tenancy.registration_policies (
          tenant_id uuid PRIMARY KEY REFERENCES tenancy.tenants ON DELETE CASCADE,
          admits text NOT NULL CHECK (admits IN ('nobody', 'domains', 'anyone')),
          domains text[] NOT NULL,
          role text NOT NULL,
          updated_at timestamptz NOT NULL
        );

        -- Who registered and has not confirmed the address. There is no user until then.
        CREATE TABLE tenancy.registrations (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          id uuid NOT NULL,
          email text NOT NULL,
          name text NOT NULL,
          password_hash text NOT NULL,
          token_hash bytea,
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE UNIQUE INDEX registrations_token ON tenancy.registrations (token_hash);
        CREATE INDEX registrations_expiry ON tenancy.registrations (expires_at);

        -- Mail that is to be sent, without what it says: a token is made when it is, and never kept.
        CREATE TABLE tenancy.mails (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          id uuid NOT NULL,
          purpose text NOT NULL,
          email text NOT NULL,
          about uuid,
          status text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'given_up')),
          created_at timestamptz NOT NULL,
          due_at timestamptz NOT NULL,
          attempts int NOT NULL DEFAULT 0,
          reason text,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX mails_due ON tenancy.mails (due_at) WHERE status = 'waiting';

        -- Of no tenant, as the users they are about. Written by functions alone.
        CREATE TABLE tenancy.user_tokens (
          token_hash bytea PRIMARY KEY,
          user_id uuid NOT NULL REFERENCES tenancy.users ON DELETE CASCADE,
          purpose text NOT NULL CHECK (purpose IN ('reset', 'confirm')),
          expires_at timestamptz NOT NULL
        );
        CREATE INDEX user_tokens_of_user ON tenancy.user_tokens (user_id);
        CREATE INDEX user_tokens_expiry ON tenancy.user_tokens (expires_at);

        -- Where a user has logged in from, as a hash with the user's id in it.
        CREATE TABLE tenancy.familiar_origins (
          user_id uuid NOT NULL REFERENCES tenancy.users ON DELETE CASCADE,
          origin bytea NOT NULL,
          seen_at timestamptz NOT NULL,
          PRIMARY KEY (user_id, origin)
        );
        CREATE INDEX familiar_origins_oldest ON tenancy.familiar_origins (seen_at);

        -- What strangers asked for, before it is looked at whether it concerns anybody: so the
        -- answer they get cannot tell.
        CREATE TABLE tenancy.account_requests (
          id uuid PRIMARY KEY,
          kind text NOT NULL CHECK (kind IN ('register', 'forgot')),
          email text NOT NULL,
          tenant_slug text,
          name text,
          password_hash text,
          requested_at timestamptz NOT NULL,
          due_at timestamptz NOT NULL
        );
        CREATE INDEX account_requests_due ON tenancy.account_requests (due_at);

        DROP FUNCTION tenancy.settle_password(uuid, text, text);
        DROP FUNCTION tenancy.user_of_email(text);
        DROP FUNCTION tenancy.user_of_id(uuid);
        DROP FUNCTION tenancy.invitation_of_token(bytea);
        """
    )
    protect("tenancy.registration_policies", "tenancy")
    protect("tenancy.registrations", "tenancy")
    protect("tenancy.mails", "tenancy")
    script(
        """
        REVOKE SELECT ON tenancy.registrations, tenancy.mails FROM iiot_observer;
        GRANT SELECT (tenant_id, id, expires_at) ON tenancy.registrations TO iiot_observer;
        GRANT SELECT (tenant_id, id, purpose, status, created_at, due_at, attempts, reason)
          ON tenancy.mails TO iiot_observer;
        GRANT SELECT (expires_at), DELETE ON tenancy.registrations TO tenancy_engine;
        GRANT SELECT (tenant_id, id, status, due_at, attempts, created_at),
          UPDATE (due_at, attempts), DELETE ON tenancy.mails TO tenancy_engine;
        GRANT SELECT (expires_at), DELETE ON tenancy.user_tokens TO tenancy_engine;
        GRANT SELECT, INSERT, UPDATE, DELETE ON tenancy.familiar_origins TO tenancy_engine;
        GRANT SELECT, INSERT, UPDATE, DELETE ON tenancy.account_requests TO tenancy_engine;

        -- Adds the platform's first admin, and says whether it did: only while there is no user.
        -- Who installs the platform vouches for the address.
        CREATE OR REPLACE FUNCTION tenancy.add_first_admin(
          new_id uuid, address text, hash text, at timestamptz
        ) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          -- Held until the commit: a second replica that starts now waits, and then finds them.
          PERFORM pg_advisory_xact_lock(hashtext('tenancy.first_admin'));
          IF EXISTS (SELECT FROM tenancy.users) THEN
            RETURN false;
          END IF;
          INSERT INTO tenancy.users
            (id, email, password_hash, is_platform_admin, created_at, email_verified_at)
          VALUES (new_id, address, hash, true, at, at);
          RETURN true;
        END $$;

        -- Gives a user who may enter, and has the password that `seen` says (null: none), another
        -- password (null: leaves it), and notes when the address was proved (null: it was not).
        -- What was on its way to set another password is void. Says whether it did.
        CREATE FUNCTION tenancy.set_password(
          wanted uuid, seen text, new_hash text, proved_at timestamptz
        ) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
          UPDATE tenancy.users SET
            password_hash = coalesce(new_hash, password_hash),
            email_verified_at = coalesce(email_verified_at, proved_at)
          WHERE id = wanted AND password_hash IS NOT DISTINCT FROM seen AND suspended_at IS NULL;
          IF NOT FOUND THEN
            RETURN false;
          END IF;
          IF new_hash IS NOT NULL THEN
            DELETE FROM tenancy.user_tokens WHERE user_id = wanted AND purpose = 'reset';
          END IF;
          IF new_hash IS NOT NULL AND proved_at IS NOT NULL THEN
            -- Who logged in so far need not be who proved the address.
            DELETE FROM tenancy.familiar_origins WHERE user_id = wanted;
          END IF;
          RETURN true;
        END $$;

        -- Keeps a token that goes to a user's own address.
        CREATE FUNCTION tenancy.keep_user_token(
          hash bytea, wanted uuid, for_purpose text, until timestamptz
        ) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          INSERT INTO tenancy.user_tokens (token_hash, user_id, purpose, expires_at)
          VALUES (hash, wanted, for_purpose, until)
        $$;

        -- Uses such a token up; says whose it was, null if it is unknown, used, or too old.
        CREATE FUNCTION tenancy.use_user_token(hash bytea, for_purpose text, at timestamptz)
          RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
          DELETE FROM tenancy.user_tokens
          WHERE token_hash = hash AND purpose = for_purpose AND expires_at > at RETURNING user_id
        $$;

        REVOKE ALL ON FUNCTION
          tenancy.set_password, tenancy.keep_user_token, tenancy.use_user_token FROM PUBLIC;
        GRANT EXECUTE ON FUNCTION
          tenancy.set_password, tenancy.keep_user_token, tenancy.use_user_token TO tenancy_rw;

        CREATE FUNCTION tenancy.user_of_email(address text)
          RETURNS TABLE (id uuid, password_hash text, is_verified boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.password_hash, u.email_verified_at IS NOT NULL
          FROM tenancy.users AS u WHERE u.email = address
        $$;

        CREATE FUNCTION tenancy.user_of_id(wanted uuid)
          RETURNS TABLE (id uuid, email text, is_platform_admin boolean, is_suspended boolean,
                         is_verified boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT u.id, u.email, u.is_platform_admin, u.suspended_at IS NOT NULL,
                 u.email_verified_at IS NOT NULL
          FROM tenancy.users AS u WHERE u.id = wanted
        $$;

        -- Who was invited where by this token, before its tenant is known; and whether it is the
        -- one that went to the address.
        CREATE FUNCTION tenancy.invitation_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, user_id uuid, email text, password_hash text,
                         expires_at timestamptz, is_mailed boolean, is_verified boolean)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT i.tenant_id, i.user_id, u.email, u.password_hash, i.expires_at,
                 i.token_hash <> hash, u.email_verified_at IS NOT NULL
          FROM tenancy.invitations AS i JOIN tenancy.users AS u ON u.id = i.user_id
          WHERE i.token_hash = hash OR i.mailed_hash = hash
        $$;

        -- Whose a token is that went to their address.
        CREATE FUNCTION tenancy.user_of_token(hash bytea)
          RETURNS TABLE (user_id uuid, purpose text, expires_at timestamptz, password_hash text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.user_id, t.purpose, t.expires_at, u.password_hash
          FROM tenancy.user_tokens AS t JOIN tenancy.users AS u ON u.id = t.user_id
          WHERE t.token_hash = hash
        $$;

        -- Which tenant has this name in addresses, and whom it lets register.
        CREATE FUNCTION tenancy.registration_of_slug(wanted text)
          RETURNS TABLE (tenant_id uuid, admits text, domains text[], role text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.tenant_id, p.admits, p.domains, p.role
          FROM tenancy.tenants AS t
          JOIN tenancy.registration_policies AS p ON p.tenant_id = t.tenant_id
          WHERE t.slug = wanted AND t.status = 'active'
        $$;

        CREATE FUNCTION tenancy.registration_of_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, id uuid, email text, name text, password_hash text,
                         expires_at timestamptz)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT r.tenant_id, r.id, r.email, r.name, r.password_hash, r.expires_at
          FROM tenancy.registrations AS r WHERE r.token_hash = hash
        $$;
        """
    )
    for function, reads in (
        ("tenancy.user_of_email(text)", "tenancy.users"),
        ("tenancy.user_of_id(uuid)", "tenancy.users"),
        ("tenancy.invitation_of_token(bytea)", "tenancy.invitations, tenancy.users"),
        ("tenancy.user_of_token(bytea)", "tenancy.user_tokens, tenancy.users"),
        (
            "tenancy.registration_of_slug(text)",
            "tenancy.tenants, tenancy.registration_policies",
        ),
        ("tenancy.registration_of_token(bytea)", "tenancy.registrations"),
    ):
        lookup_function(function, reads=reads, granted_to="tenancy_engine")
