"""Putting ml together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.books import trim_books
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.jobs import Ticker
from libs.common.parts import parts_of
from libs.common.shards import Shards
from libs.common.version import VERSION
from services.ml.api import anomalies, models
from services.ml.handlers import attach_scoring, subscriptions
from services.ml.settings import Settings
from services.ml.store.definitions import Definitions
from services.ml.store.excursions import Excursions
from services.ml.store.store import MlStore
from services.ml.usecases.scoring import Scoring


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service, its subscriptions attached to the bus; start the bus within its lifespan."""
    parts = parts_of("ml", settings, bus, partial(Transactions, store=MlStore))
    scoring = Scoring(
        Definitions(parts.engine),
        Excursions(parts.database, parts.outbox),
        Shards("ml", parts.engine, uuid4()),
        clock,
        lateness=settings.lateness,
    )
    subscriptions.attach(bus, parts.transactions)
    attach_scoring(bus, scoring)
    trim = partial(
        trim_books, parts.engine, "ml", settings.inbox_kept, settings.idempotency_keys_kept
    )
    parts.tickers += [
        Ticker("ml.refresh", settings.refresh_every, scoring.refresh),
        Ticker("ml.housekeeping", settings.housekeeping, trim),
    ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            # Before the first point comes; the ticker would only do it soon.
            await scoring.refresh()
            stack.push_async_callback(scoring.close)
            parts.start_tickers(stack)
            yield

    app = create_app(
        "ml",
        version=VERSION,
        routers=[models.router, anomalies.router],
        lifespan=lifespan,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    return app
