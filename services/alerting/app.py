"""Alerting, put together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from fastapi import FastAPI

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.version import VERSION
from services.alerting import jobs
from services.alerting.adapters.courier import Courier
from services.alerting.adapters.email import EmailSender, MailServer
from services.alerting.adapters.ssrf import Guard, OutboundClient
from services.alerting.adapters.webhook import WebhookSender
from services.alerting.api import alerts, channels
from services.alerting.handlers import subscriptions
from services.alerting.settings import Settings
from services.alerting.store.due import DueNotifications
from services.alerting.store.store import AlertingTransactions


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return alerting's app. While its lifespan lasts, it delivers what is due."""
    metrics = Metrics()
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="alerting",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=2,
        across_tenants=True,
        application_name="alerting-engine",
    )
    due = DueNotifications(engine, settings.lease)
    courier = _courier(settings)
    transactions = AlertingTransactions(database, bus.outbox("alerting"))
    pace = jobs.Pace(
        settings.delivery_tick, settings.deliveries_at_once, settings.deliveries_per_channel
    )
    deliveries = jobs.Deliveries(due, transactions, courier, clock, metrics.registry, pace)
    transactions.on_due = deliveries.wake
    housekeeping = Ticker(
        "alerting.housekeeping",
        settings.housekeeping,
        partial(jobs.keep_house, due, engine, settings.inbox_kept, settings.firings_kept),
    )
    subscriptions.attach(bus, transactions)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            stack.push_async_callback(engine.close)
            housekeeping.start()
            stack.push_async_callback(housekeeping.stop, settings.drain)
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
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.courier = courier
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    return app


def _courier(settings: Settings) -> Courier:
    mail = None
    if settings.smtp_host:
        password = settings.smtp_password
        server = MailServer(
            host=settings.smtp_host,
            port=settings.smtp_port,
            sender=settings.smtp_sender,
            sender_name=settings.smtp_sender_name,
            security=settings.smtp_security,
            username=settings.smtp_username,
            password=password.get_secret_value() if password else None,
        )
        mail = EmailSender(server, settings.public_url)
    client = OutboundClient(Guard(settings.webhook_allow))
    return Courier(mail, WebhookSender(client, settings.public_url))
