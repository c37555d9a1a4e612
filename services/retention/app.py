"""Putting retention together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.books import trim_books
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.jobs import Ticker
from libs.common.parts import parts_of
from libs.common.version import VERSION
from services.retention import jobs
from services.retention.api import policies, runs
from services.retention.handlers import subscriptions
from services.retention.settings import Settings
from services.retention.store.points import StoredPoints
from services.retention.store.store import RetentionStore
from services.retention.usecases.erasure import Erasure


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service, its subscriptions attached to the bus; start the bus within its lifespan."""
    parts = parts_of("retention", settings, bus, partial(Transactions, store=RetentionStore))
    erasure = Erasure(
        StoredPoints(parts.engine, parts.outbox, settings.default_days),
        default_days=settings.default_days,
        batch_rows=settings.batch_rows,
    )
    subscriptions.attach(bus, parts.transactions)
    trim = partial(
        trim_books, parts.engine, "retention", settings.inbox_kept, settings.idempotency_keys_kept
    )
    parts.tickers.append(Ticker("retention.housekeeping", settings.housekeeping, trim))
    if settings.erases_daily:
        daily = jobs.DailyErasure(erasure, clock)
        parts.tickers.append(Ticker("retention.erase", settings.look_every, daily.run))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            parts.start_tickers(stack)
            yield

    app = create_app(
        "retention",
        version=VERSION,
        routers=[policies.router, runs.router],
        lifespan=lifespan,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    app.state.erasure = erasure
    return app
