"""One door, one transaction: the one place where a service commits.

A door asks for a transaction and gets the service's Store. When the block ends, the events it
emitted are written to the outbox and everything commits together; on an error nothing does. With
them goes what somebody's request changed in audited tables (`libs.common.db.changes`).

Work that carries several tenants at once (a batch of telemetry) has JointTransactions.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from libs.common.bus.base import Outbox
from libs.common.bus.outcome import is_transient
from libs.common.db.acting import acting_now
from libs.common.db.changes import Changes
from libs.common.db.engine import Database, bound_to
from libs.common.errors import AppError, Unavailable
from libs.common.events.base import Event, Message, to_message
from libs.common.trace import current_traceparent


class Emitter:
    """What a transaction says, each event in the trace of the work that caused it."""

    def __init__(self) -> None:
        self.emitted: list[Message] = []

    def emit(self, event: Event) -> None:
        """Say that something happened; it is published if and only if the transaction commits."""
        self.emitted.append(to_message(event, traceparent=current_traceparent()))


class Store(Emitter):
    """What one door may touch within its transaction: the repositories, and the events it says.

    Each service derives its own, with its repositories as attributes.
    """

    def __init__(self, session: AsyncSession, tenant_id: UUID) -> None:
        super().__init__()
        self.session = session
        self.tenant_id = tenant_id


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
        self._changes = Changes(database.schema) if database.schema else None

    @asynccontextmanager
    async def begin(self, tenant_id: UUID, *others: UUID) -> AsyncIterator[S]:
        """Open a transaction for one tenant; commit it, with its events, when the block ends.

        The store is the tenant's. Of the `others` what lies beside it can be reached too.
        Raises Unavailable if the database is away, or goes away meanwhile.
        """
        try:
            with bound_to((tenant_id, *others)):
                async with self._database.session() as session:
                    store = self._store(session, tenant_id)
                    yield store
                    await self._tell_changes(store)
                    if store.emitted:
                        await session.flush()
                        await self._outbox.write(await session.connection(), store.emitted)
        except Exception as error:  # looked at; what says nothing of the database goes on as it is
            if isinstance(error, AppError) or not is_transient(error):
                raise
            raise Unavailable("this cannot be done now", retry_after_s=2) from error
        if store.emitted:
            self._outbox.committed()

    async def _tell_changes(self, store: S) -> None:
        caller = acting_now()
        if self._changes is None or caller is None or not caller.changes:
            return
        await store.session.flush()
        for recorded in await self._changes.take(store.session, caller):
            store.emit(recorded)


class Joint(Emitter):
    """An open transaction of several tenants. A service derives its own, with what it may do."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__()
        self.connection = connection


J = TypeVar("J", bound=Joint)


class JointTransactions(Generic[J]):
    """Opens transactions for several tenants at once; whoever asks for one names them all."""

    def __init__(
        self, database: Database, outbox: Outbox, joint: Callable[[AsyncConnection], J]
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._joint = joint

    @asynccontextmanager
    async def begin(self, tenants: Iterable[UUID]) -> AsyncIterator[J]:
        """Open a transaction for these tenants; commit it, with its events, when the block ends."""
        with bound_to(tenants):
            async with self._database.connection() as connection:
                joint = self._joint(connection)
                yield joint
                if joint.emitted:
                    await self._outbox.write(connection, joint.emitted)
        if joint.emitted:
            self._outbox.committed()
