"""A shard is scored by the worker that owns it."""

from libs.common.db.ddl import script

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Note which worker scores a shard, as rules does."""
    script(
        """
        -- Which worker scores a shard. A lock on the row fences off one that has lost it.
        CREATE TABLE ml.shards (
          shard int PRIMARY KEY,
          owner uuid
        );
        GRANT SELECT, INSERT, UPDATE ON ml.shards TO ml_engine;
        GRANT SELECT, UPDATE ON ml.shards TO ml_rw;
        GRANT SELECT ON ml.shards TO iiot_observer;
        """
    )
