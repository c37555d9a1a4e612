"""Putting analytics together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.parts import parts_of
from libs.common.version import VERSION
from services.analytics.api import history
from services.analytics.settings import Settings
from services.analytics.store.store import AnalyticsStore


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return the service. It hears nothing yet; the bus is its outbox's."""
    parts = parts_of("analytics", settings, bus, partial(Transactions, store=AnalyticsStore))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened():
            yield

    app = create_app(
        "analytics",
        version=VERSION,
        routers=[history.router],
        lifespan=lifespan,
        checks={"database": parts.database.check},
    )
    parts.furnish(app, settings, clock, keys)
    return app
