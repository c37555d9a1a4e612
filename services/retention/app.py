"""Putting retention together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.jobs import Ticker
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
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="retention",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=2,
        across_tenants=True,
        application_name="retention-engine",
    )
    outbox = bus.outbox("retention")
    transactions = Transactions(database, outbox, RetentionStore)
    erasure = Erasure(
        StoredPoints(engine, outbox, settings.default_days),
        default_days=settings.default_days,
        batch_rows=settings.batch_rows,
    )
    subscriptions.attach(bus, transactions)
    tickers = [
        Ticker(
            "retention.housekeeping",
            settings.housekeeping,
            partial(jobs.keep_house, engine, settings.inbox_kept),
        )
    ]
    if settings.erases_daily:
        daily = jobs.DailyErasure(erasure, clock)
        tickers.append(Ticker("retention.erase", settings.look_every, daily.run))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for ticker in tickers:
            ticker.start()
        try:
            yield
        finally:
            for ticker in tickers:
                await ticker.stop(settings.drain)
            await database.close()
            await engine.close()

    app = create_app(
        "retention",
        version=VERSION,
        routers=[policies.router, runs.router],
        lifespan=lifespan,
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    app.state.erasure = erasure
    return app
