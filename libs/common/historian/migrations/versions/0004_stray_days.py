"""Which days the points in no day's partition are of, so that these can be made by and by."""

from libs.common.db.ddl import lookup_function, script
from libs.common.db.roles import HISTORIAN_WRITER

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand only: what an older release still reads or writes must keep working."""
    script(
        """
        -- The newest first.
        CREATE FUNCTION historian.stray_days(most int) RETURNS SETOF date
          LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog SET timezone = 'UTC' AS $$
          SELECT ts::date FROM historian.points_default
          UNION SELECT ts::date FROM historian.texts_default
          ORDER BY 1 DESC LIMIT most
        $$;
        """
    )
    lookup_function(
        "historian.stray_days(int)",
        reads="historian.points_default, historian.texts_default",
        granted_to=HISTORIAN_WRITER,
    )
