"""The inbox: which events a service has handled. Kept as long as a message may come twice."""

from datetime import timedelta

from sqlalchemy import text

from libs.common.db.engine import Database


async def trim_inbox(engine: Database, schema: str, kept: timedelta) -> int:
    """Forget what was handled longer ago than `kept`; return how many marks that were.

    `engine` is the service's role that crosses tenants.
    """
    async with engine.connection() as connection:
        result = await connection.execute(
            text(f"DELETE FROM {schema}.inbox WHERE handled_at < now() - cast(:kept AS interval)"),  # noqa: S608 - a schema's name, from the code
            {"kept": kept},
        )
    return result.rowcount
