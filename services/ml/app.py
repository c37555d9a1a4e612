"""Putting ml together."""

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
from services.ml import jobs
from services.ml.api import anomalies, models
from services.ml.handlers import attach_scoring, subscriptions
from services.ml.settings import Settings
from services.ml.store.definitions import Definitions
from services.ml.store.excursions import Excursions
from services.ml.store.store import MlStore
from services.ml.usecases.scoring import Scoring


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service, its subscriptions attached to the bus; start the bus within its lifespan."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="ml",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=2,
        across_tenants=True,
        application_name="ml-engine",
    )
    outbox = bus.outbox("ml")
    transactions = Transactions(database, outbox, MlStore)
    scoring = Scoring(Definitions(engine), Excursions(database, outbox), clock)
    subscriptions.attach(bus, transactions)
    attach_scoring(bus, scoring)
    tickers = (
        Ticker("ml.refresh", settings.refresh_every, scoring.refresh),
        Ticker(
            "ml.housekeeping",
            settings.housekeeping,
            partial(jobs.keep_house, engine, settings.inbox_kept),
        ),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Before the first point comes; the ticker would only do it soon.
        await scoring.refresh()
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
        "ml",
        version=VERSION,
        routers=[models.router, anomalies.router],
        lifespan=lifespan,
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    return app
