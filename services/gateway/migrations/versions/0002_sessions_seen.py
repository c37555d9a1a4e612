"""What is known of a session: from where, since when, by what; and logins that wait for a second step."""

from libs.common.db.ddl import lookup_function, protect, script

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keep how sessions were opened, and what of a login is not done yet."""
    script(
        """
        -- Of sessions that are open now nothing of this is known.
        ALTER TABLE gateway.sessions
          ADD COLUMN address text NOT NULL DEFAULT '',
          ADD COLUMN user_agent text NOT NULL DEFAULT '',
          ADD COLUMN proofs text[] NOT NULL DEFAULT '{}',
          ADD COLUMN proved_at timestamptz,
          ADD COLUMN last_seen_at timestamptz;

        CREATE TABLE gateway.pending_logins (
          tenant_id uuid NOT NULL,
          token_hash bytea NOT NULL,
          user_id uuid NOT NULL,
          proofs text[] NOT NULL,
          enrols boolean NOT NULL,
          attempts int NOT NULL DEFAULT 0,
          proved_at timestamptz NOT NULL,
          expires_at timestamptz NOT NULL,
          PRIMARY KEY (tenant_id, token_hash)
        );
        -- Tokens are random: that two are equal does not happen, so the index tells nobody anything.
        CREATE UNIQUE INDEX pending_logins_token ON gateway.pending_logins (token_hash);
        CREATE INDEX pending_logins_expiry ON gateway.pending_logins (expires_at);

        -- The installation's own, of no tenant: what authenticators were asked and have not answered.
        -- Who logs in by a passkey alone is nobody until it has answered.
        CREATE TABLE gateway.challenges (
          challenge_hash bytea PRIMARY KEY,
          purpose text NOT NULL,
          user_id uuid,
          expires_at timestamptz NOT NULL
        );
        CREATE INDEX challenges_expiry ON gateway.challenges (expires_at);
        GRANT SELECT, INSERT, DELETE ON gateway.challenges TO gateway_engine;

        -- The tenant that a pending login is for, before it is known.
        CREATE FUNCTION gateway.tenant_of_pending_login(hash bytea) RETURNS uuid
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
          SELECT p.tenant_id FROM gateway.pending_logins AS p WHERE p.token_hash = hash
        $$;
        """
    )
    protect("gateway.pending_logins", "gateway")
    script(
        """
        REVOKE SELECT ON gateway.pending_logins FROM iiot_observer;
        GRANT SELECT (expires_at), DELETE ON gateway.pending_logins TO gateway_engine;
        """
    )
    lookup_function(
        "gateway.tenant_of_pending_login(bytea)",
        reads="gateway.pending_logins",
        granted_to="gateway_engine",
    )
