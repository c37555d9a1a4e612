"""Single sign-on: where a tenant's people log in, and who they are there."""

from libs.common.db.ddl import audited, lookup_function, protect, script

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let a tenant have identity providers."""
    script(
        """
        CREATE TABLE tenancy.identity_providers (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          id uuid NOT NULL,
          name text NOT NULL,
          kind text NOT NULL CHECK (kind IN ('oidc', 'saml', 'ldap')),
          settings jsonb NOT NULL,
          secret bytea,  -- sealed
          domains text[] NOT NULL,
          roles_of_group jsonb NOT NULL,
          default_roles text[] NOT NULL,
          is_enabled boolean NOT NULL,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1,
          PRIMARY KEY (tenant_id, id),
          UNIQUE (tenant_id, name)
        );

        -- Browsers on their way to a provider and back. Each is deleted by its return.
        CREATE TABLE tenancy.sign_ons (
          tenant_id uuid NOT NULL,
          state_hash bytea NOT NULL,
          provider_id uuid NOT NULL,
          attempt bytea NOT NULL,  -- sealed
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, state_hash),
          FOREIGN KEY (tenant_id, provider_id)
            REFERENCES tenancy.identity_providers ON DELETE CASCADE
        );
        CREATE INDEX sign_ons_of_provider ON tenancy.sign_ons (tenant_id, provider_id);
        CREATE INDEX sign_ons_expiry ON tenancy.sign_ons (expires_at);

        -- Who is whom there. It ends with the membership: who left and comes again is looked at anew.
        CREATE TABLE tenancy.identities (
          tenant_id uuid NOT NULL,
          provider_id uuid NOT NULL,
          subject text NOT NULL,
          user_id uuid NOT NULL,
          created_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, provider_id, subject),
          FOREIGN KEY (tenant_id, provider_id)
            REFERENCES tenancy.identity_providers ON DELETE CASCADE,
          FOREIGN KEY (tenant_id, user_id) REFERENCES tenancy.memberships ON DELETE CASCADE
        );
        CREATE INDEX identities_of_user ON tenancy.identities (tenant_id, user_id);
        """
    )
    protect("tenancy.identity_providers", "tenancy")
    protect("tenancy.sign_ons", "tenancy")
    protect("tenancy.identities", "tenancy")
    audited("tenancy.identity_providers", resource="identity_provider")
    script(
        """
        REVOKE SELECT ON tenancy.identity_providers, tenancy.sign_ons FROM iiot_observer;
        GRANT SELECT (tenant_id, id, name, kind, domains, is_enabled, created_at, updated_at)
          ON tenancy.identity_providers TO iiot_observer;
        GRANT SELECT (tenant_id, provider_id, expires_at) ON tenancy.sign_ons TO iiot_observer;
        GRANT SELECT (expires_at), DELETE ON tenancy.sign_ons TO tenancy_engine;

        -- Where one may log in to a tenant, before anybody is known: its name is all that was said.
        CREATE FUNCTION tenancy.providers_of_slug(wanted text)
          RETURNS TABLE (tenant_id uuid, id uuid, name text, kind text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT p.tenant_id, p.id, p.name, p.kind
          FROM tenancy.tenants AS t JOIN tenancy.identity_providers AS p ON p.tenant_id = t.tenant_id
          WHERE t.slug = wanted AND t.status = 'active' AND p.is_enabled ORDER BY p.name
        $$;
        """
    )
    lookup_function(
        "tenancy.providers_of_slug(text)",
        reads="tenancy.tenants, tenancy.identity_providers",
        granted_to="tenancy_engine",
    )
