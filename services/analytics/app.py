"""Putting analytics together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.version import VERSION
from services.analytics.api import history
from services.analytics.settings import Settings
from services.analytics.store.store import AnalyticsStore


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service. It hears nothing yet; the bus is its outbox's."""
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="analytics",
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await database.close()

    app = create_app(
        "analytics",
        version=VERSION,
        routers=[history.router],
        lifespan=lifespan,
        checks={"database": database.check},
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.transactions = Transactions(database, bus.outbox("analytics"), AnalyticsStore)
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    return app
