"""Sessions, their refresh tokens, tickets for live connections, and the keys tokens are signed with."""

from libs.common.db.ddl import create_mailboxes, lookup_function, open_schema, protect, script

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the gateway's schema."""
    script(
        """
        -- The installation's own, of no tenant: the private halves, for gateway_rw alone.
        CREATE TABLE gateway.signing_keys (
          kid text PRIMARY KEY,
          private_pem text NOT NULL,
          created_at timestamptz NOT NULL
        );
        GRANT SELECT, INSERT, DELETE ON gateway.signing_keys TO gateway_rw;

        CREATE TABLE gateway.sessions (
          tenant_id uuid NOT NULL,
          id uuid NOT NULL,
          user_id uuid NOT NULL,
          created_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL,
          revoked_at timestamptz,
          revoked_because text,
          PRIMARY KEY (tenant_id, id)
        );
        CREATE INDEX sessions_of_user ON gateway.sessions (tenant_id, user_id)
          WHERE revoked_at IS NULL;
        -- These two are read across tenants, by gateway_engine.
        CREATE INDEX sessions_revoked ON gateway.sessions (revoked_at) WHERE revoked_at IS NOT NULL;
        CREATE INDEX sessions_expiry ON gateway.sessions (expires_at);

        CREATE TABLE gateway.refresh_tokens (
          tenant_id uuid NOT NULL,
          token_hash bytea NOT NULL,
          session_id uuid NOT NULL,
          parent_hash bytea,
          expires_at timestamptz NOT NULL,
          used_at timestamptz,
          PRIMARY KEY (tenant_id, token_hash),
          FOREIGN KEY (tenant_id, session_id) REFERENCES gateway.sessions ON DELETE CASCADE
        );
        CREATE INDEX refresh_tokens_of_session ON gateway.refresh_tokens (tenant_id, session_id);
        -- Tokens are random: that two are equal does not happen, so the index tells nobody anything.
        CREATE UNIQUE INDEX refresh_tokens_hash ON gateway.refresh_tokens (token_hash);

        CREATE TABLE gateway.tickets (
          tenant_id uuid NOT NULL,
          ticket_hash bytea NOT NULL,
          session_id uuid NOT NULL,
          user_id uuid NOT NULL,
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, ticket_hash),
          FOREIGN KEY (tenant_id, session_id) REFERENCES gateway.sessions ON DELETE CASCADE
        );
        CREATE UNIQUE INDEX tickets_hash ON gateway.tickets (ticket_hash);
        CREATE INDEX tickets_expiry ON gateway.tickets (expires_at);

        -- The session that a refresh token belongs to, before its tenant is known.
        CREATE FUNCTION gateway.session_of_refresh_token(hash bytea)
          RETURNS TABLE (tenant_id uuid, session_id uuid, user_id uuid)
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT s.tenant_id, s.id, s.user_id
          FROM gateway.refresh_tokens t
          JOIN gateway.sessions s ON s.tenant_id = t.tenant_id AND s.id = t.session_id
          WHERE t.token_hash = hash
        $$;
        """
    )
    protect("gateway.sessions", "gateway")
    protect("gateway.refresh_tokens", "gateway")
    protect("gateway.tickets", "gateway")
    create_mailboxes("gateway")
    open_schema("gateway", "gateway_rw", "gateway_engine")
    script(
        """
        REVOKE SELECT ON gateway.refresh_tokens, gateway.tickets FROM iiot_observer;
        GRANT SELECT (id, revoked_at, expires_at), DELETE ON gateway.sessions TO gateway_engine;
        GRANT SELECT, DELETE ON gateway.tickets TO gateway_engine;
        """
    )
    lookup_function(
        "gateway.session_of_refresh_token(bytea)",
        reads="gateway.refresh_tokens, gateway.sessions",
        granted_to="gateway_engine",
    )
