"""Putting rules together."""

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
from services.rules.api import rules
from services.rules.handlers import attach_evaluation, subscriptions
from services.rules.settings import Settings
from services.rules.store.checkpoints import Checkpoints
from services.rules.store.definitions import Definitions
from services.rules.store.store import RulesStore
from services.rules.usecases.evaluation import Evaluation


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service, its subscriptions attached to the bus; start the bus within its lifespan."""
    parts = parts_of("rules", settings, bus, partial(Transactions, store=RulesStore))
    evaluation = Evaluation(
        Definitions(parts.engine),
        Checkpoints(parts.database, parts.outbox),
        Shards("rules", parts.engine, uuid4()),
        clock,
        lateness=settings.lateness,
    )
    subscriptions.attach(bus, parts.transactions)
    attach_evaluation(bus, evaluation)
    trim = partial(
        trim_books, parts.engine, "rules", settings.inbox_kept, settings.idempotency_keys_kept
    )
    parts.tickers += [
        Ticker("rules.refresh", settings.refresh_every, evaluation.refresh),
        Ticker("rules.checkpoint", settings.checkpoint_every, evaluation.checkpoint),
        Ticker("rules.housekeeping", settings.housekeeping, trim),
    ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            # Before the first point comes; the tickers would only do it soon.
            await evaluation.refresh()
            stack.push_async_callback(evaluation.close)
            parts.start_tickers(stack)
            yield

    app = create_app(
        "rules",
        version=VERSION,
        routers=[rules.router],
        lifespan=lifespan,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    return app
