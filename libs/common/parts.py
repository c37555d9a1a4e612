"""What every service is put together from, in its `app.py`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, TypeVar

from fastapi import FastAPI

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus, Outbox
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.jobs import Ticker
from libs.common.refusals import Refusals, TenantsOf
from libs.common.settings import ServiceSettings

T = TypeVar("T", bound=Transactions[Any])

REFUSALS_WRITTEN = timedelta(seconds=1)
"""How often. By the clock, not at once: nobody can tell by the time of an answer what was noted."""


@dataclass(slots=True, eq=False)
class Parts(Generic[T]):
    """A service's databases, as itself and as the role that crosses tenants; its outbox; its jobs."""

    service: str
    database: Database
    engine: Database
    outbox: Outbox
    transactions: T
    drain: timedelta
    tickers: list[Ticker] = field(default_factory=list)
    refusals: Refusals | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AsyncExitStack]:
        """Give a stack: what is pushed onto it is closed in the opposite order, the databases last."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.database.close)
            stack.push_async_callback(self.engine.close)
            if self.refusals is not None:
                ticker = Ticker("refusals", REFUSALS_WRITTEN, self.refusals.write)
                stack.push_async_callback(self.refusals.finish)
                stack.push_async_callback(ticker.stop, self.drain)
                ticker.start()
            yield stack

    def start_tickers(self, stack: AsyncExitStack) -> None:
        """Begin what the service does by the clock."""
        for ticker in self.tickers:
            ticker.start()
            stack.push_async_callback(ticker.stop, self.drain)

    def furnish(
        self,
        app: FastAPI,
        settings: ServiceSettings,
        clock: Clock,
        keys: KeySource | None,
        *,
        tenants_of: TenantsOf | None = None,
    ) -> None:
        """Lay out what the doors of every service look for on the app.

        `tenants_of` is what Refusals want of it.
        """
        self.refusals = Refusals(self.service, self.transactions, clock, tenants_of)
        app.state.refusals = self.refusals
        app.state.settings = settings
        app.state.clock = clock
        app.state.transactions = self.transactions
        app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))


def parts_of(
    service: str,
    settings: ServiceSettings,
    bus: Bus,
    transactions: Callable[[Database, Outbox], T],
    *,
    engine_pool: int = 2,
) -> Parts[T]:
    """Make a service's parts; nothing connects yet. `engine_pool` is how often it crosses at once."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name=service,
        schema=service,
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=engine_pool,
        across_tenants=True,
        application_name=f"{service}-engine",
    )
    outbox = bus.outbox(service)
    return Parts(service, database, engine, outbox, transactions(database, outbox), settings.drain)
