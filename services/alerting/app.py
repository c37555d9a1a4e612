"""Alerting, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.outbound import Guard, OutboundClient
from libs.common.parts import parts_of
from libs.common.version import VERSION
from services.alerting import jobs
from services.alerting.adapters.courier import Courier
from services.alerting.adapters.email import EmailSender
from services.alerting.adapters.names import TenantNames
from services.alerting.adapters.webhook import WebhookSender
from services.alerting.api import alerts, channels
from services.alerting.handlers import subscriptions
from services.alerting.settings import Settings
from services.alerting.store.due import DueNotifications
from services.alerting.store.store import AlertingTransactions


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return alerting's app. While its lifespan lasts, it delivers what is due."""
    metrics = Metrics()
    parts = parts_of("alerting", settings, bus, AlertingTransactions)
    transactions = parts.transactions
    due = DueNotifications(parts.engine, settings.lease)
    names = TenantNames()
    courier = _courier(settings, names)
    pace = jobs.Pace(
        settings.delivery_tick, settings.deliveries_at_once, settings.deliveries_per_channel
    )
    deliveries = jobs.Deliveries(due, transactions, courier, clock, metrics.registry, pace)
    transactions.on_due = deliveries.wake
    keep_house = partial(
        jobs.keep_house,
        due,
        parts.engine,
        settings.inbox_kept,
        settings.idempotency_keys_kept,
        settings.firings_kept,
    )
    parts.tickers.append(Ticker("alerting.housekeeping", settings.housekeeping, keep_house))
    subscriptions.attach(bus, transactions)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            stack.callback(names.close)
            parts.start_tickers(stack)
            if settings.delivers:
                deliveries.start()
                stack.push_async_callback(deliveries.stop, settings.drain)
            yield

    app = create_app(
        "alerting",
        version=VERSION,
        routers=[alerts.router, channels.router],
        lifespan=lifespan,
        metrics=metrics,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    app.state.courier = courier
    return app


def _courier(settings: Settings, names: TenantNames) -> Courier:
    server = settings.mail_server()
    mail = EmailSender(server, settings.public_url) if server else None
    client = OutboundClient(Guard(settings.webhook_allow, names.resolve))
    return Courier(mail, WebhookSender(client, settings.public_url))
