"""The books that every service keeps beside its own tables: what was heard, what was answered."""

from datetime import timedelta

from libs.common.db.engine import Database
from libs.common.db.idempotency import trim_idempotency_keys
from libs.common.db.inbox import trim_inbox


async def trim_books(
    engine: Database, schema: str, inbox_kept: timedelta, keys_kept: timedelta
) -> None:
    """Forget which events were handled, and which requests with a key were answered, long ago."""
    await trim_inbox(engine, schema, inbox_kept)
    await trim_idempotency_keys(engine, schema, keys_kept)
