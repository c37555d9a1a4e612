"""Answers to requests with an Idempotency-Key."""

from libs.common.db.ddl import create_idempotency_keys

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of keys and answers."""
    create_idempotency_keys("ingest")
