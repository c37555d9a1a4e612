"""Running one service as a process of its own: `python -m services.<name>`."""

import contextlib
import ctypes
import gc
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from fastapi import FastAPI

from libs.common import log
from libs.common.bus.base import Bus
from libs.common.bus.rabbit import RabbitBus
from libs.common.clock import Clock, SystemClock
from libs.common.db.engine import Database
from libs.common.http.app import ServiceApp
from libs.common.http.bounds import raise_open_files
from libs.common.http.server import Server, ServerConfig
from libs.common.settings import ServiceSettings

T = TypeVar("T", bound=ServiceSettings)


def main(service: str, settings: T, build: Callable[[T, Bus, Clock], FastAPI]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what has begun and end."""
    log.configure(service, level=settings.log_level, file=settings.log_file)
    raise_open_files()
    relay = Database(
        settings.engine_database_url.get_secret_value(),
        pool_size=1,
        across_tenants=True,
        application_name=f"{service}-relay",
    )
    bus = RabbitBus(
        settings.bus_url.get_secret_value(),
        service=service,
        shards=settings.telemetry_shards,
        relays={service: relay},
    )
    app = build(settings, bus, SystemClock())
    with_bus(app, bus)
    server = Server(
        ServerConfig(
            app,
            settings.bounds(),
            host=settings.host,
            port=settings.port,
            drain_s=int(settings.drain.total_seconds()),
        ),
        notice_s=settings.drain_notice.total_seconds(),
        on_drain=app.health.drain if isinstance(app, ServiceApp) else lambda: None,
    )
    with contextlib.suppress(KeyboardInterrupt):  # raised anew once all is finished
        server.run()


def settle_memory() -> None:
    """Tell the garbage collector that what lives now stays, and to look at the rest less often.

    A service under load makes much that dies young; at the defaults, full collections stopped
    ingest for up to 0.4 s at a time. And give back to the system what loading the libraries took for
    a while: 40 MB for one of them, which the C library (glibc) would keep for later.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    gc.freeze()
    gc.set_threshold(10_000, 50, 100)


def with_bus(app: FastAPI, bus: Bus) -> None:
    """Let the bus deliver while the app lives: after its resources are open, until before they close."""
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            await bus.start()
            settle_memory()
            try:
                yield
            finally:
                await bus.stop()

    app.router.lifespan_context = lifespan
