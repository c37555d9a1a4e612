"""The ledger, brought up to date and read."""

import asyncio
from datetime import datetime
from uuid import UUID

from services.ingest.domain.ledger import Hour
from services.ingest.store.ledger import Folding
from services.ingest.store.store import IngestStore

ROWS_AT_ONCE = 250
"""Of the log, each of which may count some 5,000 points."""


class Bookkeeping:
    """Adds what the writers wrote down to the ledger. One run at a time in a process."""

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        self._next: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def catch_up(self) -> None:
        """Return when all that was written down before the call is in the ledger.

        Those who ask while a run is under way share the next.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._run(), name="ingest.ledger")
        await asyncio.shield(self._next)

    async def _run(self) -> None:
        async with self._turn:
            # From here on whoever asks comes too late for this run.
            self._next = None
            # What is written down meanwhile is for the next: it would have no end.
            up_to = await self._folding.newest()
            while await self._folding.fold(ROWS_AT_ONCE, up_to) == ROWS_AT_ONCE:
                pass


async def hours(
    store: IngestStore, device_id: UUID, *, since: datetime, until: datetime
) -> list[Hour]:
    """Return a device's hours. Raises NotFound if there is no such device."""
    await store.devices.get(device_id)
    return await store.ledger.hours(since, until, device_id)
