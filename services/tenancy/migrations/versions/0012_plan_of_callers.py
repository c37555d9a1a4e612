"""Who calls is looked up with the tenant's plan: which limits hold may depend on it."""

from libs.common.db.ddl import lookup_function, script

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say the plan with a user's memberships, and with an API key."""
    script(
        """
        DROP FUNCTION tenancy.memberships_of_user(uuid);
        DROP FUNCTION tenancy.api_key_of_hash(bytea);

        CREATE FUNCTION tenancy.memberships_of_user(wanted uuid)
          RETURNS TABLE (tenant_id uuid, tenant_slug text, tenant_name text, tenant_status text,
                         tenant_plan text, name text, status text, roles text[], own_roles jsonb)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT t.tenant_id, t.slug, t.name, t.status, t.plan, m.name, m.status, m.roles,
            (SELECT coalesce(jsonb_object_agg(r.name, r.permissions), '{}')
             FROM tenancy.roles AS r
             WHERE r.tenant_id = m.tenant_id AND r.name = ANY(m.roles))
          FROM tenancy.memberships AS m JOIN tenancy.tenants AS t ON t.tenant_id = m.tenant_id
          WHERE m.user_id = wanted ORDER BY m.created_at, t.slug
        $$;

        -- Whose a key is, before its tenant is known, and until when this secret of it is good.
        CREATE FUNCTION tenancy.api_key_of_hash(hash bytea)
          RETURNS TABLE (tenant_id uuid, key_id uuid, tenant_status text, tenant_plan text,
                         scopes text[], allowed_networks text[], device_groups uuid[],
                         good_until timestamptz)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT k.tenant_id, k.id, t.status, t.plan, k.scopes, k.allowed_networks, k.device_groups,
                 CASE WHEN k.secret_hash = hash THEN k.expires_at
                      ELSE least(k.expires_at, k.overlap_until) END
          FROM tenancy.api_keys AS k JOIN tenancy.tenants AS t ON t.tenant_id = k.tenant_id
          WHERE k.secret_hash = hash OR k.previous_hash = hash
        $$;
        """
    )
    for function, reads in (
        (
            "tenancy.memberships_of_user(uuid)",
            "tenancy.memberships, tenancy.tenants, tenancy.roles",
        ),
        ("tenancy.api_key_of_hash(bytea)", "tenancy.api_keys, tenancy.tenants"),
    ):
        lookup_function(function, reads=reads, granted_to="tenancy_engine")
