"""Anomalies outlive their model, not their tenant."""

from libs.common.db.ddl import script

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let ml erase the anomalies of a tenant that is no more."""
    script("GRANT DELETE ON ml.anomalies TO ml_rw;")
