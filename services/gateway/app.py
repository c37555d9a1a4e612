"""The gateway, put together."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from prometheus_client import Gauge
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from libs.common.auth.guesses import Guesses
from libs.common.bus.base import Bus
from libs.common.clock import Clock
from libs.common.db.transactions import Transactions
from libs.common.http.app import create_app
from libs.common.http.metrics import Metrics
from libs.common.jobs import Ticker
from libs.common.parts import parts_of
from libs.common.version import VERSION
from services.gateway import jobs
from services.gateway.adapters.limits import Limiter
from services.gateway.adapters.tenancy import Tenancy
from services.gateway.adapters.upstreams import Upstreams
from services.gateway.api import auth, docs, live
from services.gateway.api.console import console, no_console
from services.gateway.api.front_door import FrontDoor, Limits
from services.gateway.api.secure_headers import SecureHeaders
from services.gateway.domain.limit import Limit
from services.gateway.handlers import listen_for_revocation, stream_out, subscriptions
from services.gateway.settings import Settings
from services.gateway.store.keys import Keys
from services.gateway.store.lookups import Lookups
from services.gateway.store.store import GatewayStore
from services.gateway.usecases.accounts import Accounts
from services.gateway.usecases.callers import Callers
from services.gateway.usecases.description import Description
from services.gateway.usecases.keyring import Keyring
from services.gateway.usecases.live import Live, Most
from services.gateway.usecases.sessions import Lifetimes, Sessions


def build(
    settings: Settings,
    bus: Bus,
    clock: Clock,
    *,
    upstreams: Mapping[str, ASGIApp] | None = None,
) -> FastAPI:
    """Return the gateway's app.

    `upstreams` are services of this process, by name; the mapping may be filled after this
    returns, because the services need `app.state.keyring`, which is the source of the keys they
    verify with.
    """
    parts = parts_of(
        "gateway",
        settings,
        bus,
        partial(Transactions, store=GatewayStore),
        engine_pool=settings.database_pool,
    )
    transactions = parts.transactions
    lookups = Lookups(parts.engine)
    keyring = Keyring(
        Keys(parts.database, settings.key_passphrase.get_secret_value()),
        clock,
        settings.key_lifetime,
    )
    services = Upstreams(
        upstreams if upstreams is not None else {},
        settings.upstreams,
        timeout_s=settings.upstream_timeout.total_seconds(),
    )
    tenancy = Tenancy(services, keyring.signer)
    accounts = Accounts(tenancy)
    callers = Callers(keyring, accounts, clock)
    sessions = Sessions(
        transactions, lookups, tenancy, accounts, callers, keyring, clock, _lifetimes(settings)
    )
    connections = Live(
        lookups,
        Most(
            settings.live_connections_of_session,
            settings.live_connections_of_user,
            settings.live_connections_of_tenant,
        ),
    )
    callers.on_revoked.append(connections.close_session)
    callers.on_changed.append(connections.close_changed)
    limiter = Limiter(settings.redis_url.get_secret_value())
    metrics = Metrics()
    connected = Gauge("gateway_live_connections", "Open WebSockets.", registry=metrics.registry)
    connected.set_function(connections.count)

    subscriptions.attach(bus, transactions)
    listen_for_revocation(bus, callers, connections, clock, settings.access_lifetime)
    stream_out(bus, connections)

    catch_up = partial(jobs.catch_up, lookups, callers, clock, settings.access_lifetime)
    keep_house = partial(
        jobs.keep_house, keyring, lookups, parts.engine, clock, settings.inbox_kept
    )
    parts.tickers += [
        Ticker("gateway.catch_up", settings.revocation_catch_up, catch_up),
        Ticker("gateway.housekeeping", settings.housekeeping, keep_house),
    ]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with parts.opened() as stack:
            await keyring.keep()
            await services.open()
            stack.push_async_callback(services.close)
            await limiter.open()
            stack.push_async_callback(limiter.close)
            # Before the first request: what was revoked while we were away.
            await catch_up()
            parts.start_tickers(stack)
            stack.callback(connections.close_all)
            yield

    app = create_app(
        "gateway",
        version=VERSION,
        routers=[auth.router, docs.router, live.router]
        + ([no_console] if settings.console_dir is None else []),
        lifespan=lifespan,
        metrics=metrics,
        # Not the bus: without it the gateway still lets everyone work, and revokes by its own look.
        checks={"database": parts.database.check},
        max_body_bytes=settings.max_body_bytes,
    )
    limits = Limits(
        user=Limit("user", settings.requests_per_minute),
        of_segment={
            segment: Limit(segment, amount)
            for segment, amount in settings.requests_per_minute_of.items()
        },
        device=Limit("device", settings.device_requests_per_minute),
        anonymous=Limit("address", settings.anonymous_per_minute),
        live=Limit("live", settings.live_connections_per_minute),
    )
    if settings.console_dir is not None:
        app.mount("/", console(settings.console_dir), name="console")
    # Innermost: within the request's id, log line and metrics, before the gateway's own routes.
    app.user_middleware.append(
        Middleware(
            FrontDoor,
            upstreams=services,
            callers=callers,
            limiter=limiter,
            limits=limits,
            guesses=Guesses(settings.wrong_tokens_per_minute),
            trusted_proxies=settings.trusted_proxies,
            metrics_networks=settings.metrics_networks,
        )
    )
    app.add_middleware(SecureHeaders, allowed_hosts=settings.allowed_hosts)
    app.state.bounds = settings.bounds()
    app.state.clock = clock
    app.state.transactions = transactions
    app.state.keyring = keyring
    app.state.accounts = accounts
    app.state.callers = callers
    app.state.sessions = sessions
    app.state.live = connections
    app.state.limiter = limiter
    app.state.login_limit = Limit("login", settings.logins_per_minute)
    app.state.allowed_origins = frozenset(settings.allowed_origins)
    app.state.description = Description(services, app.openapi)
    return app


def _lifetimes(settings: Settings) -> Lifetimes:
    return Lifetimes(
        access=settings.access_lifetime,
        refresh=settings.refresh_lifetime,
        session=settings.session_lifetime,
        ticket=settings.ticket_lifetime,
    )
