"""Ingest, put together."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID

from fastapi import FastAPI
from prometheus_client import Gauge

from libs.common.auth.jwks import JwksKeys
from libs.common.auth.principal import KeySource, PrincipalVerifier
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.engine import Database
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.version import VERSION
from services.ingest import jobs
from services.ingest.api import devices, telemetry
from services.ingest.handlers import Writer, listen_for_revocation
from services.ingest.protocols.mqtt.endpoint import Endpoint
from services.ingest.protocols.mqtt.session import Limits
from services.ingest.protocols.mqtt_bridge import Bridge, Broker
from services.ingest.settings import Settings
from services.ingest.store.landing import Landing
from services.ingest.store.store import IngestStore
from services.ingest.store.tokens import Tokens
from services.ingest.usecases.reports import Reports
from services.ingest.usecases.sources import Presence, Sources
from services.ingest.usecases.telemetry import Intake, IntakeLimits


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return ingest's app. Its lifespan opens the databases and the ports of the devices."""
    metrics = Metrics()
    database = Database(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool,
        application_name="ingest",
    )
    engine = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=settings.database_pool,
        across_tenants=True,
        application_name="ingest-engine",
    )
    transactions = Transactions(database, bus.outbox("ingest"), IngestStore)
    sources = Sources(
        Tokens(engine, settings.telemetry_shards), transactions, settings.telemetry_shards
    )
    intake = Intake(bus.publish, sources, clock, _intake_limits(settings))
    landing = Landing(settings.historian_writer_url.get_secret_value())
    endpoint = _endpoint(settings, sources, intake, transactions, clock)
    strays = Gauge(
        "historian_stray_points", "Points in no day's partition.", registry=metrics.registry
    )
    if settings.writer:
        Writer(landing, settings.writer_rows, metrics.registry).attach(bus)
    if settings.endpoints:
        listen_for_revocation(bus, sources)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            stack.push_async_callback(engine.close)
            if settings.writer:
                await landing.open()
                stack.push_async_callback(landing.close)
                housekeeping = Ticker(
                    "ingest.housekeeping",
                    settings.housekeeping,
                    partial(jobs.keep_house, landing, engine, clock, settings.inbox_kept, strays),
                )
                housekeeping.start()
                stack.push_async_callback(housekeeping.stop)
            if settings.endpoints:
                await _open_doors(app, settings, stack)
            yield

    app = create_app(
        "ingest",
        version=VERSION,
        routers=[devices.router, telemetry.router] if settings.endpoints else [],
        lifespan=lifespan,
        metrics=metrics,
        checks={"database": database.check, "bus": bus.check},
    )
    app.state.settings = settings
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.verifier = PrincipalVerifier(keys or JwksKeys(settings.gateway_jwks_url))
    app.state.sources = sources
    app.state.intake = intake
    app.state.endpoint = endpoint
    return app


async def _open_doors(app: FastAPI, settings: Settings, stack: AsyncExitStack) -> None:
    """Open what devices come in by; closed again in the opposite order, the intake last."""
    intake: Intake = app.state.intake
    endpoint: Endpoint = app.state.endpoint
    intake.start()
    stack.push_async_callback(intake.stop)
    endpoint.presence.start()
    stack.push_async_callback(endpoint.presence.stop)
    stack.push_async_callback(endpoint.stop)
    app.state.mqtt_port = await endpoint.listen(settings.mqtt_host, settings.mqtt_port)
    if settings.mqtt_tls_port is not None:
        app.state.mqtt_tls_port = await endpoint.listen(
            settings.mqtt_host, settings.mqtt_tls_port, _tls(settings)
        )
    if settings.bridge_broker is not None:
        bridge = _bridge(app, settings)
        bridge.start()
        stack.push_async_callback(bridge.stop)
        app.state.bridge = bridge


def _intake_limits(settings: Settings) -> IntakeLimits:
    return IntakeLimits(
        shards=settings.telemetry_shards,
        linger=settings.batch_linger,
        full_points=settings.batch_points,
        most_pending_points=settings.pending_points,
        most_metrics=settings.metrics_per_device,
    )


def _endpoint(
    settings: Settings,
    sources: Sources,
    intake: Intake,
    transactions: Transactions[IngestStore],
    clock: Clock,
) -> Endpoint:
    return Endpoint(
        sources,
        Presence(transactions, clock),
        intake,
        Reports(transactions),
        clock,
        limits=Limits(max_packet_size=settings.mqtt_packet_bytes),
        past=settings.oldest,
        ahead=settings.clock_ahead,
        most_connections=settings.mqtt_connections,
    )


def _bridge(app: FastAPI, settings: Settings) -> Bridge:
    if settings.bridge_tenant is None:
        raise SystemExit("INGEST_BRIDGE_BROKER needs INGEST_BRIDGE_TENANT: whose devices are they?")
    broker = Broker(
        url=settings.bridge_broker or "",
        topic=settings.bridge_topic,
        tenant_id=UUID(settings.bridge_tenant),
        client_id=settings.bridge_client_id,
    )
    return Bridge(
        broker,
        app.state.sources,
        app.state.intake,
        app.state.clock,
        past=settings.oldest,
        ahead=settings.clock_ahead,
    )


def _tls(settings: Settings) -> ssl.SSLContext:
    if settings.mqtt_tls_certificate is None:
        raise SystemExit("INGEST_MQTT_TLS_PORT needs INGEST_MQTT_TLS_CERTIFICATE (and _KEY)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.mqtt_tls_certificate, settings.mqtt_tls_key)
    return context
