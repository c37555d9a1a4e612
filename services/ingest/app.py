"""Ingest, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from fastapi import FastAPI
from prometheus_client import Gauge

from libs.common.auth.guesses import Guesses
from libs.common.auth.principal import KeySource
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.destinations import Destinations, hosts_of
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.parts import Parts, parts_of
from libs.common.sealing import Sealing
from libs.common.version import VERSION
from services.ingest import jobs
from services.ingest.api import (
    attributes,
    broker_auth,
    credentials,
    devices,
    gateways,
    groups,
    influx,
    ledger,
    policy,
    profiles,
    provisioning,
    reports,
    telemetry,
)
from services.ingest.api import commands as commands_api
from services.ingest.api import connectors as connectors_api
from services.ingest.api.limits import on_over_quota
from services.ingest.domain.quota import Rate
from services.ingest.domain.report import TooManyReports
from services.ingest.handlers import (
    Writer,
    listen_for_attributes,
    listen_for_commands,
    listen_for_connectors,
    listen_for_gateways,
    listen_for_policies,
    listen_for_profiles,
    listen_for_quotas,
    listen_for_revocation,
    listen_for_takeovers,
    subscriptions,
)
from services.ingest.protocols.amqp_door import AmqpDoor
from services.ingest.protocols.coap.door import CoapDoor
from services.ingest.protocols.door import Door
from services.ingest.protocols.modbus.poller import modbus_kind
from services.ingest.protocols.mqtt.door import MqttDoor
from services.ingest.protocols.mqtt_bridge import bridge_kind
from services.ingest.protocols.opcua.door import OpcUaDoor
from services.ingest.protocols.opcua.site import opcua_kind
from services.ingest.settings import Settings
from services.ingest.store.commands import Dispatches
from services.ingest.store.connections import Connections
from services.ingest.store.connectors import ConnectorLeases
from services.ingest.store.contacts import Hearings
from services.ingest.store.device_tenants import DeviceTenants
from services.ingest.store.devices import Removed
from services.ingest.store.landing import Landing, QuarantineQuota
from services.ingest.store.ledger import Folding
from services.ingest.store.mqtt_sessions import MqttSessions
from services.ingest.store.placements import Unsaid
from services.ingest.store.store import IngestStore
from services.ingest.store.tokens import Tokens
from services.ingest.store.usage import UsageOfAll
from services.ingest.usecases.allowances import Allowances
from services.ingest.usecases.commands import end_overdue
from services.ingest.usecases.connectors import Connectors, Kinds
from services.ingest.usecases.contacts import Contacts
from services.ingest.usecases.credentials import Secrets
from services.ingest.usecases.devices import purge
from services.ingest.usecases.downlinks import Dispatcher
from services.ingest.usecases.ledger import Bookkeeping
from services.ingest.usecases.placements import say_places
from services.ingest.usecases.policies import Policies
from services.ingest.usecases.polls import Outcomes, Polls
from services.ingest.usecases.presence import Presence
from services.ingest.usecases.profiles import ProfilesInUse
from services.ingest.usecases.provisioning import Provisioning
from services.ingest.usecases.quarantine import Replays
from services.ingest.usecases.quotas import OverQuota, Quotas
from services.ingest.usecases.reception import Believed, Reception
from services.ingest.usecases.reports import Reports
from services.ingest.usecases.sources import Sources
from services.ingest.usecases.telemetry import Intake, IntakeLimits
from services.ingest.usecases.usage import tell_usage

ROUTERS = [
    commands_api.of_device,
    reports.router,
    policy.router,
    provisioning.of_devices,
    attributes.router,
    credentials.router,
    gateways.router,
    devices.router,
    profiles.router,
    groups.router,
    provisioning.router,
    commands_api.router,
    ledger.router,
    ledger.of_tenant,
    telemetry.router,
    influx.router,
    connectors_api.router,
    connectors_api.kinds_router,
    broker_auth.router,
]
"""In the order in which a path is looked for."""
PLACES_SAID = timedelta(seconds=1)
"""How often is said where devices are that were moved: a promise of a few seconds hangs on it."""
QUOTAS_NOTED = timedelta(seconds=1)
"""How often is written down who is over his quota."""


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
        clock,
    )
    allowances = Allowances(parts.transactions, clock)
    intake = Intake(bus.publish, sources, clock, _intake_limits(settings), allowances)
    dispatches = Dispatches(parts.database, parts.engine, parts.outbox)
    dispatcher = Dispatcher(dispatches, clock, settings.commands_resend_after)
    reception = _reception(settings, sources, intake, parts, clock, dispatcher)
    landing = Landing(
        settings.historian_writer_url.get_secret_value(),
        quota=QuarantineQuota(settings.quarantine_rows, settings.quarantine_bytes),
    )
    folding = Folding(parts.engine)
    bookkeeping = Bookkeeping(folding)
    if settings.writer:
        Writer(landing, settings.writer_rows, metrics.registry).attach(bus)
        parts.tickers += _housekeeping(settings, clock, parts, landing, metrics)
        parts.tickers += [
            Ticker("ingest.ledger", settings.ledger_folded, bookkeeping.catch_up),
            Ticker(
                "ingest.usage",
                settings.usage_told,
                partial(tell_usage, UsageOfAll(parts.engine), parts.transactions, clock),
            ),
            Ticker(
                "ingest.storage", settings.storage_counted, UsageOfAll(parts.engine).count_storage
            ),
            Ticker(
                "ingest.ledger_kept",
                settings.housekeeping,
                partial(folding.trim, settings.ledger_kept),
            ),
        ]
    kinds = _kinds(settings)
    connectors = Connectors(
        kinds,
        ConnectorLeases(parts.database, parts.engine, parts.outbox, settings.connector_lease),
        parts.transactions,
        reception,
        clock,
        lease=settings.connector_lease,
        most=settings.connectors,
    )
    policies = Policies(parts.transactions, clock)
    secrets = Secrets(
        sources, Sealing(settings.credentials_key.get_secret_value(), "ingest.credentials")
    )
    mqtt = MqttDoor(
        settings, reception, parts.transactions, MqttSessions(parts.database, parts.outbox)
    )
    doors: list[Door] = [
        mqtt,
        OpcUaDoor(settings, reception),
        CoapDoor(settings, reception, parts.transactions, policies, secrets),
        AmqpDoor(settings, reception, DeviceTenants(parts.engine)),
    ]
    if settings.endpoints:
        subscriptions.attach(bus, parts.transactions)
        listen_for_revocation(bus, sources)
        listen_for_takeovers(bus, reception.presence, reception.spawn)
        listen_for_gateways(bus, mqtt.endpoint.gateway_changed, mqtt.endpoint.look_again)
        listen_for_attributes(
            bus,
            mqtt.endpoint.attributes_changed,
            mqtt.endpoint.tell_all_attributes,
            reception.spawn,
        )
        listen_for_connectors(bus, connectors)
        listen_for_policies(bus, policies)
        listen_for_quotas(bus, allowances)
        parts.tickers.append(
            Ticker("ingest.allowances", settings.quotas_believed, allowances.forget_all)
        )
        parts.tickers.append(Ticker("ingest.verify", settings.verify_every, sources.verify))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            if settings.writer:
                await landing.open()
                stack.push_async_callback(landing.close)
            parts.start_tickers(stack)
            if settings.endpoints:
                # Closed in the opposite order, the intake last.
                for part in (intake, reception.presence, reception, dispatcher):
                    part.start()
                    stack.push_async_callback(part.stop)
                for door in doors:
                    stack.push_async_callback(door.stop)
                    await door.open(app.state)
                connectors.start()
                stack.push_async_callback(connectors.stop)
            yield

    app = create_app(
        "ingest",
        version=VERSION,
        routers=ROUTERS if settings.endpoints else [],
        lifespan=lifespan,
        metrics=metrics,
        checks={"database": parts.database.check, "bus": bus.check},
    )
    app.add_exception_handler(OverQuota, on_over_quota)
    app.add_exception_handler(TooManyReports, reports.on_too_many_reports)
    parts.furnish(app, settings, clock, keys)
    app.state.sources = sources
    app.state.intake = intake
    app.state.bookkeeping = bookkeeping
    app.state.replays = Replays(
        parts.transactions,
        sources,
        intake,
        past=settings.oldest,
        ahead=settings.clock_ahead,
        within=settings.accept_within,
    )
    app.state.dispatcher = dispatcher
    app.state.reception = reception
    app.state.policies = policies
    app.state.secrets = secrets
    app.state.connectors = connectors
    app.state.connector_kinds = kinds
    app.state.endpoint = mqtt.endpoint
    app.state.polls = Polls(dispatcher)
    app.state.outcomes = Outcomes(parts.transactions)
    if settings.endpoints:
        _attend_to_commands(app, settings, bus, parts, dispatches)
        _keep_registry(app, settings, bus, parts)
    return app


def _housekeeping(
    settings: Settings,
    clock: Clock,
    parts: Parts[Transactions[IngestStore]],
    landing: Landing,
    metrics: Metrics,
) -> list[Ticker]:
    """Return what looks after the historian by the clock."""
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
    return [
        Ticker("ingest.housekeeping", settings.housekeeping, keep_house),
        Ticker("ingest.days", settings.strays_housed, landing.house_strays),
    ]


def _attend_to_commands(
    app: FastAPI,
    settings: Settings,
    bus: Bus,
    parts: Parts[Transactions[IngestStore]],
    dispatches: Dispatches,
) -> None:
    """Hear of commands, and look after them by the clock."""
    dispatcher: Dispatcher = app.state.dispatcher
    listen_for_commands(bus, dispatcher, app.state.outcomes)
    app.state.sources.on_revoked.append(app.state.polls.end)
    parts.tickers += [
        Ticker("ingest.commands", settings.commands_looked_after, partial(end_overdue, dispatches)),
        Ticker("ingest.resend", settings.commands_resend_after / 2, dispatcher.look),
        Ticker(
            "ingest.commands_kept",
            settings.housekeeping,
            partial(dispatches.forget, settings.commands_kept),
        ),
    ]


def _keep_registry(
    app: FastAPI, settings: Settings, bus: Bus, parts: Parts[Transactions[IngestStore]]
) -> None:
    """Furnish what the registry's routes need, and look after its devices by the clock."""
    sources: Sources = app.state.sources
    reception: Reception = app.state.reception
    app.state.provisioning = Provisioning(
        Tokens(parts.engine, settings.telemetry_shards),
        parts.transactions,
        Guesses(settings.wrong_keys_per_minute),
        app.state.clock,
        settings.devices_per_tenant,
    )
    reception.on_tick.append(sources.cut_ended)
    listen_for_profiles(bus, ProfilesInUse(sources, parts.transactions), reception.spawn)
    contacts = Contacts(
        Hearings(parts.database, parts.engine, parts.outbox), reception, settings.offline_after
    )
    app.state.silence = contacts.look_for_silence
    parts.tickers += [
        Ticker("ingest.contacts", settings.contacts_every, contacts.write),
        Ticker(
            "ingest.places",
            PLACES_SAID,
            partial(say_places, Unsaid(parts.engine), parts.transactions, app.state.clock),
        ),
        Ticker("ingest.quotas", QUOTAS_NOTED, reception.quotas.note),
        Ticker("ingest.silence", settings.contacts_every, contacts.look_for_silence),
        Ticker(
            "ingest.purge",
            settings.housekeeping,
            partial(purge, Removed(parts.engine), parts.transactions, settings.deleted_kept),
        ),
    ]


def _kinds(settings: Settings) -> Kinds:
    """Return the protocols by which we go to the devices."""
    return Kinds(
        [
            bridge_kind(settings.mqtt_packet_bytes),
            opcua_kind(settings.opcua_certificate, settings.opcua_key),
            modbus_kind(),
        ],
        Sealing(settings.credentials_key.get_secret_value(), "ingest.connectors"),
        Destinations(settings.connector_addresses, hosts_of(_own_servers(settings))),
    )


def _intake_limits(settings: Settings) -> IntakeLimits:
    return IntakeLimits(
        shards=settings.telemetry_shards,
        linger=settings.batch_linger,
        full_points=settings.batch_points,
        most_pending_points=settings.pending_points,
        most_metrics=settings.metrics_per_device,
        most_refused_bytes=settings.quarantine_entry_bytes,
    )


def _own_servers(settings: Settings) -> list[str]:
    urls = (
        settings.database_url,
        settings.engine_database_url,
        settings.historian_writer_url,
        settings.bus_url,
        settings.amqp_url,
        settings.amqp_management_url,
    )
    return [url.get_secret_value() for url in urls if url is not None]


def _rate(settings: Settings) -> Rate:
    return Rate(settings.device_messages_per_second, settings.device_burst)


def _reception(
    settings: Settings,
    sources: Sources,
    intake: Intake,
    parts: Parts[Transactions[IngestStore]],
    clock: Clock,
    dispatcher: Dispatcher,
) -> Reception:
    connections = Connections(parts.database, parts.engine, parts.outbox, settings.presence_lease)
    return Reception(
        sources,
        intake,
        Presence(connections, clock, settings.presence_lease),
        Reports(parts.transactions, settings.reports_per_minute, settings.replies_per_minute),
        Quotas(_rate(settings), parts.transactions, clock),
        dispatcher,
        Guesses(settings.wrong_tokens_per_minute),
        clock,
        Believed(settings.oldest, settings.clock_ahead, settings.accept_within),
    )
