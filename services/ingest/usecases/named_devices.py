"""A tenant's devices, by what others call them: id or name."""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import TypeVar
from uuid import UUID, uuid4

from libs.common.bus.outcome import is_transient
from libs.common.db.transactions import Transactions
from libs.common.errors import AppError, Conflict, NotFound, Unavailable
from services.ingest.domain.device import Source
from services.ingest.domain.token import new_token
from services.ingest.store.store import IngestStore
from services.ingest.usecases import devices
from services.ingest.usecases.sources import Sources

T = TypeVar("T")


def is_an_id(name: str) -> bool:
    """Whether a device is called by its id."""
    try:
        UUID(name)
    except ValueError:
        return False
    return True


async def register_named(
    store: IngestStore, name: str, device_type: str, *, most: int, at: datetime
) -> UUID:
    """Register a device that another speaks for; return its id. Raises Conflict, as `register`.

    Its token is shown to nobody: it gets another when it is to speak for itself.
    """
    device_id = uuid4()
    await devices.register(
        store,
        device_id,
        new_token(),
        name=name,
        type=device_type,
        description="",
        most=most,
        at=at,
    )
    return device_id


class NamedDevices:
    """Finds the devices of one tenant, for somebody who speaks in their name."""

    def __init__(
        self, tenant_id: UUID, sources: Sources, transactions: Transactions[IngestStore]
    ) -> None:
        self._tenant_id = tenant_id
        self._sources = sources
        self._transactions = transactions

    async def source(self, name: str) -> Source | None:
        """Return the device of that id or name, None if the tenant has none.

        Raises Unavailable if that cannot be found out now.
        """
        device_id = UUID(name) if is_an_id(name) else await self._named(name)
        if device_id is None:
            return None
        try:
            return await self._sources.of_tenant(self._tenant_id, device_id)
        except NotFound:
            return None

    async def has_any(self, names: Collection[str]) -> bool:
        """Whether the tenant has a device of one of these ids or names; raises as `source`."""
        if not names:
            return False
        ids = [UUID(name) for name in names if is_an_id(name)]
        return await self._look_up(lambda store: store.connectors.has_device(names, ids))

    async def register(self, name: str, device_type: str, *, most: int, at: datetime) -> None:
        """Register a device of that name, if the tenant has fewer than `most`, and none so named.

        Raises Conflict if there are as many; Unavailable.
        """
        try:
            async with self._transactions.begin(self._tenant_id) as store:
                await register_named(store, name, device_type, most=most, at=at)
        except Conflict:
            # Another process may have heard of it in the same moment.
            if await self._named(name) is None:
                raise

    async def _named(self, name: str) -> UUID | None:
        return await self._look_up(lambda store: store.connectors.device_named(name))

    async def _look_up(self, ask: Callable[[IngestStore], Awaitable[T]]) -> T:
        try:
            async with self._transactions.begin(self._tenant_id) as store:
                return await ask(store)
        except AppError:
            raise
        except Exception as error:
            if is_transient(error):
                raise Unavailable("devices cannot be looked up now", retry_after_s=2) from error
            raise
