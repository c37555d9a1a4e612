"""${message}"""

from alembic import op

from libs.common.db.ddl import script

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    ${upgrades if upgrades else "script(\"\"\"\"\"\")"}
