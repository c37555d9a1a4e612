"""One door, one transaction: the one place where a service commits.

A door asks for a transaction and gets the service's Store. When the block ends, the events it
emitted are written to the outbox and everything commits together; on an error nothing does.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from uuid import UUID

from opentelemetry.propagate import inject
from sqlalchemy.ext.asyncio import AsyncSession

from libs.common.bus.base import Outbox
from libs.common.bus.outcome import is_transient
from libs.common.db.engine import Database, bound_to
from libs.common.errors import AppError, Unavailable
from libs.common.events.base import Event, to_message


class Store:
    """What one door may touch within its transaction: the repositories, and the events it says.

    Each service derives its own, with its repositories as attributes.
    """

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        self.session = session
        self.tenant_id = tenant_id
        self.emitted: list[Event] = []

    def emit(self, event: Event) -> None:
        """Say that something happened; it is published if and only if the transaction commits."""
        self.emitted.append(event)


S = TypeVar("S", bound=Store)


class Transactions(Generic[S]):
    """Opens the transactions of one service."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        store: Callable[[AsyncSession, UUID], S],
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._store = store

    @asynccontextmanager
    async def begin(self, tenant_id: UUID) -> AsyncIterator[S]:
        """Open a transaction for one tenant; commit it, with its events, when the block ends.

        Raises Unavailable if the database is away, or goes away meanwhile.
        """
        try:
            with bound_to((tenant_id,)):
                async with self._database.session() as session:
                    store = self._store(session, tenant_id)
                    yield store
                    if store.emitted:
                        await session.flush()
                        traceparent = current_traceparent()
                        messages = [to_message(e, traceparent=traceparent) for e in store.emitted]
                        await self._outbox.write(await session.connection(), messages)
        except Exception as error:
            if isinstance(error, AppError) or not is_transient(error):
                raise
            raise Unavailable("this cannot be done now", retry_after_s=2) from error
        if store.emitted:
            self._outbox.committed()


def current_traceparent() -> str | None:
    """Return the W3C trace context of the work at hand, if it is traced."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")
