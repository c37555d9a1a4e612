"""Plans and quotas, what tenants use, and how they look."""

from libs.common.db.ddl import create_quotas, lookup_function, protect, script

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- The installation's own: no tenant has any part in them.
        CREATE TABLE tenancy.plans (
          name text PRIMARY KEY,
          description text NOT NULL,
          -- By resource: how much (null: any amount), and from which percentage one is warned.
          quotas jsonb NOT NULL,
          is_built_in boolean NOT NULL DEFAULT false,
          created_at timestamptz NOT NULL,
          updated_at timestamptz NOT NULL,
          version int NOT NULL DEFAULT 1
        );
        GRANT SELECT, INSERT, UPDATE, DELETE ON tenancy.plans TO tenancy_rw;
        GRANT SELECT (name, version) ON tenancy.plans TO tenancy_engine;
        GRANT SELECT ON tenancy.plans TO iiot_observer;

        INSERT INTO tenancy.plans (name, description, quotas, is_built_in, created_at, updated_at)
        VALUES
          ('free', 'To try it out.', '{
            "devices": {"most": 10, "warn_percent": 80},
            "users": {"most": 3, "warn_percent": 80},
            "rules": {"most": 20, "warn_percent": 80},
            "metrics": {"most": 500, "warn_percent": 80},
            "api_keys": {"most": 2, "warn_percent": 80},
            "storage_bytes": {"most": 1073741824, "warn_percent": 80},
            "points_per_day": {"most": 1000000, "warn_percent": 80},
            "points_per_second": {"most": 100, "warn_percent": 80},
            "api_calls_per_day": {"most": 20000, "warn_percent": 80}}', true, now(), now()),
          ('standard', 'A plant.', '{
            "devices": {"most": 1000, "warn_percent": 80},
            "users": {"most": 50, "warn_percent": 80},
            "rules": {"most": 1000, "warn_percent": 80},
            "metrics": {"most": 50000, "warn_percent": 80},
            "api_keys": {"most": 20, "warn_percent": 80},
            "storage_bytes": {"most": 107374182400, "warn_percent": 80},
            "points_per_day": {"most": 100000000, "warn_percent": 80},
            "points_per_second": {"most": 5000, "warn_percent": 80},
            "api_calls_per_day": {"most": 1000000, "warn_percent": 80}}', true, now(), now()),
          ('unlimited', 'Whatever the machine bears.', '{}', true, now(), now());

        ALTER TABLE tenancy.tenants
          ADD COLUMN plan text NOT NULL DEFAULT 'unlimited' REFERENCES tenancy.plans,
          -- The version of the plan that was said last; another than the plan's: to be said.
          ADD COLUMN plan_version int NOT NULL DEFAULT 0,
          -- What differs from the plan, in its form.
          ADD COLUMN own_quotas jsonb NOT NULL DEFAULT '{}',
          ADD COLUMN status_reason text NOT NULL DEFAULT '',
          -- Of one that is closing: when it is erased.
          ADD COLUMN erased_from timestamptz,
          DROP CONSTRAINT tenants_status_check,
          ADD CONSTRAINT tenants_status_check CHECK (status IN ('active', 'suspended', 'closing')),
          ADD CONSTRAINT tenants_closing_check
            CHECK ((status = 'closing') = (erased_from IS NOT NULL));
        GRANT SELECT (tenant_id, plan, plan_version, erased_from) ON tenancy.tenants
          TO tenancy_engine;

        -- How much of what on which day (UTC): of what is there the most at a time, of what is used
        -- up all of it.
        CREATE TABLE tenancy.usage_days (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          day date NOT NULL,
          resource text NOT NULL,
          amount bigint NOT NULL,
          PRIMARY KEY (tenant_id, day, resource)
        );
        -- How much there is now; and what was said of the quota: where the tenant stands, and on
        -- which day the worst was said last.
        CREATE TABLE tenancy.usage_standing (
          tenant_id uuid NOT NULL REFERENCES tenancy.tenants ON DELETE CASCADE,
          resource text NOT NULL,
          day date NOT NULL,
          amount bigint NOT NULL,
          level text NOT NULL CHECK (level IN ('within', 'warning', 'reached')),
          worst text NOT NULL CHECK (worst IN ('within', 'warning', 'reached')),
          worst_on date NOT NULL,
          PRIMARY KEY (tenant_id, resource)
        );

        -- What is NULL is the installation's own.
        CREATE TABLE tenancy.brandings (
          tenant_id uuid PRIMARY KEY REFERENCES tenancy.tenants ON DELETE CASCADE,
          product_name text,
          colour_on_light text,
          colour_on_dark text,
          sender_name text,
          email_footer text,
          updated_at timestamptz NOT NULL
        );
        -- The page to log in at looks like the tenant's, before anybody is known.
        CREATE FUNCTION tenancy.branding_of_slug(wanted text)
          RETURNS TABLE (product_name text, colour_on_light text, colour_on_dark text)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT b.product_name, b.colour_on_light, b.colour_on_dark
          FROM tenancy.tenants AS t JOIN tenancy.brandings AS b ON b.tenant_id = t.tenant_id
          WHERE t.slug = wanted AND t.status = 'active'
        $$;
        """
    )
    protect("tenancy.usage_days", "tenancy")
    protect("tenancy.usage_standing", "tenancy")
    protect("tenancy.brandings", "tenancy")
    create_quotas("tenancy")
    script(
        """
        GRANT SELECT (tenant_id, resource, day, level) ON tenancy.usage_standing TO tenancy_engine;
        """
    )
    lookup_function(
        "tenancy.branding_of_slug(text)",
        reads="tenancy.tenants, tenancy.brandings",
        granted_to="tenancy_engine",
    )
