"""All services in one process, on one database: the edge, and what the system tests run.

Every service is built by its own `build`, with the log in PostgreSQL as its bus. The gateway is
handed the other services' apps and calls them without a socket between; only it has a port, and
ingest those of the devices.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path

from fastapi import FastAPI

from deploy.edge.server import EmbeddedServer
from deploy.local.database import PlatformDatabase
from deploy.local.errors import ServerError
from deploy.local.processes import LOOPBACK
from libs.common.bus.local import MAX_BYTES, LocalBus
from libs.common.bus.local_metrics import LocalBusMetrics
from libs.common.clock import Clock
from libs.common.db.roles import BUS, HISTORIAN_WRITER
from libs.common.http.app import ServiceApp
from libs.common.http.bounds import Bounds
from libs.common.service import settle_memory

SERVICES = ("tenancy", "ingest", "rules", "analytics", "ml", "alerting", "retention")
"""In the order they are started; the gateway comes last, and people through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How this edge is to be run. `smtp` and `webhooks` are host and port of the local catcher."""

    host: str = LOOPBACK
    port: int = 8000
    mqtt_port: int = 1883
    coap_port: int | None = None
    """Absent: no CoAP."""
    opcua_port: int | None = None
    """Absent: no OPC UA server."""
    state_dir: Path | None = None
    """Where ingest keeps what it has beside the database. Absent: it keeps nothing."""
    admin_email: str
    admin_password: str
    smtp: tuple[str, int] | None = None
    webhooks: tuple[str, int] | None = None
    log_max_bytes: int = MAX_BYTES
    """What the event log may take on disk before publishing is refused."""
    settings: Mapping[str, Mapping[str, object]] | None = None
    """Settings that differ, by service."""


class Platform:
    """The running platform."""

    def __init__(
        self, apps: Mapping[str, FastAPI], gateway: FastAPI, bus: LocalBus, url: str
    ) -> None:
        self.apps = apps
        self.gateway = gateway
        self.bus = bus
        self.url = url

    @property
    def mqtt_port(self) -> int:
        """Where devices connect."""
        port: int = self.apps["ingest"].state.mqtt_port
        return port


@asynccontextmanager
async def running(
    database: PlatformDatabase, clock: Clock, options: Options
) -> AsyncIterator[Platform]:
    """Start everything on a prepared database; ready within, and stopped cleanly afterwards."""
    bus = LocalBus(database.url(BUS), clock, forget_others=True, max_bytes=options.log_max_bytes)
    url = f"http://{options.host}:{options.port}"
    # The gateway is handed the others' apps, and they the keys that it signs with.
    apps: dict[str, FastAPI] = {}
    gateway = _build("gateway", database, bus, clock, options, url, upstreams=apps)
    # Only the gateway has a port, so it speaks for the bus too.
    gateway.health.add("bus", bus.check)
    gateway.metrics.registry.register(LocalBusMetrics(bus))
    for service in SERVICES:
        apps[service] = _build(
            service, database, bus, clock, options, url, keys=gateway.state.keyring
        )
    async with AsyncExitStack() as stack:
        for app in (*apps.values(), gateway):
            await stack.enter_async_context(app.router.lifespan_context(app))
        await bus.start()
        settle_memory()
        stack.push_async_callback(bus.stop)
        ingest = apps["ingest"]
        if ingest.state.amqp is not None:
            # The devices' broker asks there who they are; through the gateway nobody can.
            asked_at = ingest.state.settings.port
            if asked_at == options.port:
                message = (
                    f"AMQP: set INGEST_PORT, where the broker asks, to another than {asked_at}"
                )
                raise ServerError(message)
            bounds = ingest.state.settings.bounds()
            await stack.enter_async_context(_serving(ingest, bounds, options.host, asked_at))
        bounds = gateway.state.bounds
        await stack.enter_async_context(_serving(gateway, bounds, options.host, options.port))
        yield Platform(apps, gateway, bus, url)


def _build(
    service: str,
    database: PlatformDatabase,
    bus: LocalBus,
    clock: Clock,
    options: Options,
    url: str,
    **more: object,
) -> ServiceApp:
    settings = import_module(f"services.{service}.settings").Settings(
        **database.of_service(service),
        gateway_jwks_url=f"{url}/.well-known/jwks.json",
        **_own_settings(service, database, options, url),
        **((options.settings or {}).get(service, {})),
    )
    app: ServiceApp = import_module(f"services.{service}.app").build(settings, bus, clock, **more)
    return app


def _own_settings(
    service: str, database: PlatformDatabase, options: Options, url: str
) -> dict[str, object]:
    match service:
        case "tenancy":
            return {
                "first_admin_email": options.admin_email,
                "first_admin_password": options.admin_password,
                **_mail(options, url),
            }
        case "ingest":
            return {
                "historian_writer_url": database.url(HISTORIAN_WRITER),
                "claim_url": f"{url}/claim",
                "mqtt_host": options.host,
                "mqtt_port": options.mqtt_port,
                "coap_host": options.host,
                "coap_port": options.coap_port,
                "opcua_host": options.host,
                "opcua_port": options.opcua_port,
                **_opcua_identity(options.state_dir),
                "state_dir": options.state_dir,
            }
        case "alerting":
            settings = _mail(options, url)
            if options.webhooks is not None:
                host, port = options.webhooks
                # The one address that the guard lets through: the inbox of this very machine.
                settings["webhook_allow"] = frozenset({(IPv4Address(host), port)})
            return settings
        case _:
            return {}


def _mail(options: Options, url: str) -> dict[str, object]:
    """Return where mail is handed in, and where its links lead."""
    if options.smtp is None:
        return {"public_url": f"{url}/"}
    host, port = options.smtp
    return {
        "public_url": f"{url}/",
        "smtp_host": host,
        "smtp_port": port,
        "smtp_security": "none",
    }


def _opcua_identity(folder: Path | None) -> dict[str, object]:
    """Return where our OPC UA certificate is kept, which the other sides are told to trust."""
    if folder is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    return {"opcua_certificate": folder / "opcua.pem", "opcua_key": folder / "opcua.key"}


@asynccontextmanager
async def _serving(app: FastAPI, bounds: Bounds, host: str, port: int) -> AsyncIterator[None]:
    server = EmbeddedServer(
        app,
        socket.create_server((host, port)),
        bounds,
        drain_s=5,
    )
    server.start()
    try:
        yield
    finally:
        await server.stop()
