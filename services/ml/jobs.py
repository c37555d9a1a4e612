"""What ml does by the clock."""

from datetime import timedelta

from libs.common.db.engine import Database
from libs.common.db.inbox import trim_inbox


async def keep_house(engine: Database, inbox_kept: timedelta) -> None:
    """Forget old inbox marks."""
    await trim_inbox(engine, "ml", inbox_kept)
