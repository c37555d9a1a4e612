"""Ingest, put together."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID

from fastapi import FastAPI
from prometheus_client import Gauge

from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.http.bounds import within_open_files
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.parts import Parts, parts_of
from libs.common.version import VERSION
from services.ingest import jobs
from services.ingest.api import devices, telemetry
from services.ingest.handlers import Writer, listen_for_revocation, subscriptions
from services.ingest.protocols.mqtt.endpoint import Capacity, Endpoint
from services.ingest.protocols.mqtt.session import Limits
from services.ingest.protocols.mqtt_bridge import Bridge, Broker
from services.ingest.settings import Settings
from services.ingest.store.connections import Connections
from services.ingest.store.landing import Landing, QuarantineQuota
from services.ingest.store.store import IngestStore
from services.ingest.store.tokens import Tokens
from services.ingest.usecases.presence import Presence
from services.ingest.usecases.quarantine import Replays
from services.ingest.usecases.reports import Reports
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake, IntakeLimits


def build(settings: Settings, bus: Bus, clock: Clock, *, keys: KeySource | None = None) -> FastAPI:
    """Return ingest's app. Its lifespan opens the databases and the ports of the devices."""
    metrics = Metrics()
    parts = parts_of(
        "ingest",
        settings,
        bus,
        partial(Transactions, store=IngestStore),
        engine_pool=settings.database_pool,
    )
    sources = Sources(
        Tokens(parts.engine, settings.telemetry_shards),
        parts.transactions,
        settings.telemetry_shards,
    )
    intake = Intake(bus.publish, sources, clock, _intake_limits(settings))
    landing = Landing(
        settings.historian_writer_url.get_secret_value(),
        quota=QuarantineQuota(settings.quarantine_rows, settings.quarantine_bytes),
    )
    if settings.writer:
        Writer(landing, settings.writer_rows, metrics.registry).attach(bus)
        strays = Gauge(
            "historian_stray_points", "Points in no day's partition.", registry=metrics.registry
        )
        keep_house = partial(
            jobs.keep_house,
            landing,
            parts.engine,
            clock,
            settings.inbox_kept,
            settings.idempotency_keys_kept,
            strays,
        )
        parts.tickers += [
            Ticker("ingest.housekeeping", settings.housekeeping, keep_house),
            Ticker("ingest.days", settings.strays_housed, landing.house_strays),
        ]
    if settings.endpoints:
        subscriptions.attach(bus, parts.transactions)
        listen_for_revocation(bus, sources)
        parts.tickers.append(Ticker("ingest.verify", settings.verify_every, sources.verify))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            if settings.writer:
                await landing.open()
                stack.push_async_callback(landing.close)
            parts.start_tickers(stack)
            if settings.endpoints:
                await _open_doors(app, settings, stack)
            yield

    app = create_app(
        "ingest",
        version=VERSION,
        routers=[devices.router, telemetry.router] if settings.endpoints else [],
        lifespan=lifespan,
        metrics=metrics,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    parts.furnish(app, settings, clock, keys)
    app.state.sources = sources
    app.state.intake = intake
    app.state.replays = Replays(
        parts.transactions,
        sources,
        intake,
        past=settings.oldest,
        ahead=settings.clock_ahead,
        within=settings.accept_within,
    )
    app.state.endpoint = _endpoint(settings, sources, intake, parts, clock)
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
        most_refused_bytes=settings.quarantine_entry_bytes,
    )


def _endpoint(
    settings: Settings,
    sources: Sources,
    intake: Intake,
    parts: Parts[Transactions[IngestStore]],
    clock: Clock,
) -> Endpoint:
    connections = Connections(parts.database, parts.engine, parts.outbox, settings.presence_lease)
    return Endpoint(
        sources,
        Presence(connections, clock, settings.presence_lease),
        intake,
        Reports(parts.transactions, settings.reports_per_minute),
        clock,
        limits=Limits(max_packet_size=settings.mqtt_packet_bytes),
        past=settings.oldest,
        ahead=settings.clock_ahead,
        capacity=Capacity(
            # Half the files a process may open; the rest is for HTTP, the databases and the bus.
            within_open_files(settings.mqtt_connections, 1 / 2),
            within_open_files(settings.mqtt_strangers, 1 / 8),
            settings.mqtt_strangers_per_address,
        ),
        guesses=Guesses(settings.wrong_tokens_per_minute),
    )


def _bridge(app: FastAPI, settings: Settings) -> Bridge:
    if settings.bridge_tenant is None:
        raise SystemExit("INGEST_BRIDGE_BROKER needs INGEST_BRIDGE_TENANT: whose devices are they?")
    broker = Broker(
        url=settings.bridge_broker or "",
        topic=settings.bridge_topic,
        tenant_id=UUID(settings.bridge_tenant),
        client_id=settings.bridge_client_id,
        ca=settings.bridge_ca,
    )
    return Bridge(
        broker,
        app.state.sources,
        app.state.intake,
        app.state.clock,
        past=settings.oldest,
        ahead=settings.clock_ahead,
        most_bytes=settings.mqtt_packet_bytes,
    )


def _tls(settings: Settings) -> ssl.SSLContext:
    if settings.mqtt_tls_certificate is None:
        raise SystemExit("INGEST_MQTT_TLS_PORT needs INGEST_MQTT_TLS_CERTIFICATE (and _KEY)")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.mqtt_tls_certificate, settings.mqtt_tls_key)
    return context
