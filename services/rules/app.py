"""Putting rules together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

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
from services.rules import jobs
from services.rules.api import rules
from services.rules.handlers import attach_evaluation, subscriptions
from services.rules.settings import Settings
from services.rules.store.checkpoints import Checkpoints
from services.rules.store.definitions import Definitions
from services.rules.store.store import RulesStore
from services.rules.usecases.evaluation import Evaluation


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service, its subscriptions attached to the bus; start the bus within its lifespan."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="rules",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=2,
        across_tenants=True,
        application_name="rules-engine",
    )
    outbox = bus.outbox("rules")
    transactions = Transactions(database, outbox, RulesStore)
    evaluation = Evaluation(
        Definitions(engine), Checkpoints(database, engine, outbox), clock, owner=uuid4()
    )
    subscriptions.attach(bus, transactions)
    attach_evaluation(bus, evaluation)
    tickers = (
        Ticker("rules.refresh", settings.refresh_every, evaluation.refresh),
        Ticker("rules.checkpoint", settings.checkpoint_every, evaluation.checkpoint),
        Ticker(
            "rules.housekeeping",
            settings.housekeeping,
            partial(jobs.keep_house, engine, settings.inbox_kept),
        ),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        # Before the first point comes; the tickers would only do it soon.
        await evaluation.refresh()
        for ticker in tickers:
            ticker.start()
        try:
            yield
        finally:
            for ticker in tickers:
                await ticker.stop(settings.drain)
            await evaluation.close()
            await database.close()
            await engine.close()

    app = create_app(
        "rules",
        version=VERSION,
        routers=[rules.router],
        lifespan=lifespan,
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    return app
